"""The product's services as they are started in production: by module, with settings from the environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cncmon_agent.settings import AgentSettings
from cncmon_core import nats_link
from cncmon_core.settings import variable_of
from cncmon_ingest.settings import IngestSettings
from robustness.traffic.child import Child, environ_of
from robustness.validate.promised import last_epoch
from testkit import agent as agents
from testkit import ingest
from testkit.waiting import until

SITE = "hall"


def link_settings(nats_url: str) -> nats_link.NatsSettings:
    """How a service reaches NATS: a dead peer is noticed in a second and a half, tries are close together."""
    return nats_link.NatsSettings(
        servers=(nats_url,), ping_interval_ms=500, retry_delay_ms_base=50, retry_delay_ms_max=500
    )


def common_settings(folder: Path, edge: str, machines: Path | None, **changes: Any) -> AgentSettings:
    """Return the settings of an agent whose folder this is; its accepted log lies there, outside of its data folder."""
    common: dict[str, Any] = {
        "site": SITE,
        "edge": edge,
        "machines": (str(machines),) if machines else (),
        "accepted_log": str(folder / "accepted.jsonl"),
        "duplicate_window_s": 1,
    }
    return agents.settings_for(folder, **(common | changes))


class AgentProcess(Child):
    """An agent; `killed` collects the epochs that a kill -9 ended."""

    def __init__(
        self,
        folder: Path,
        nats_url: str,
        *,
        edge: str,
        machines: Path | None = None,
        prefix: Sequence[str] = (),
        module: str = "cncmon_agent.main",
        environ: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> None:
        """`prefix`: a command line in front of the agent's own, such as one that enters a network namespace."""
        folder.mkdir(parents=True, exist_ok=True)
        self.edge = edge
        self.folder = folder
        self.killed: set[int] = set()
        self.settings = common_settings(folder, edge, machines, **changes)
        self.accepted = Path(self.settings.accepted_log)
        settings = environ_of("AGENT", self.settings) | environ_of("NATS", link_settings(nats_url))
        super().__init__(f"agent-{folder.name}", folder, ["-m", module], settings | dict(environ or {}))
        self.argv = [*prefix, *self.argv]

    @property
    def data(self) -> Path:
        """Its data folder."""
        return Path(self.settings.data_dir)

    async def start_without_machines(self) -> None:
        """Start it to deliver what it has, and wait until it can be stopped in order; it reads nothing."""
        self.start({variable_of("AGENT", "machines"): ""})
        # A process that Python is still loaded into takes no SIGTERM: it ends by it.
        await until(lambda: b'"agent made"' in self.output() or not self.runs)

    def kept(self) -> int:
        """Return how many batches the stream had not acknowledged when it stopped; 0 where it did not stop in order."""
        last = self.output().splitlines()[-1:]
        return _kept(last[0]) if last and not self.runs else 0

    def kill(self) -> None:
        """kill -9: what is neither synced nor acknowledged of this epoch is no promise any more."""
        super().kill()
        epoch = last_epoch(self.accepted)
        if epoch is not None:
            self.killed.add(epoch)


def _kept(line: bytes) -> int:
    try:
        said = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        return 0
    return int(said.get("kept_batches", 0)) if isinstance(said, dict) else 0


class IngestProcess(Child):
    """An ingest worker, which leads as well."""

    def __init__(
        self,
        folder: Path,
        nats_url: str,
        settings: IngestSettings,
        name: str = "ingest",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        theirs = environ_of("INGEST", settings) | environ_of("NATS", link_settings(nats_url)) | dict(environ or {})
        super().__init__(name, folder, ["-m", "cncmon_ingest.main", "run"], theirs)


def ingest_settings(dsn: str, **changes: Any) -> IngestSettings:
    """Settings with short intervals and, like the agents here, a duplicate window of a second."""
    return ingest.settings_for(dsn, **({"duplicate_window_s": 1, "ack_wait_ms": 5000} | changes))
