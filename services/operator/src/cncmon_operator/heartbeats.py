"""What the edges say of themselves: heartbeats in KV `edge_status`, heard as they come and swept now and then."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_core import logs, names
from cncmon_core.edge_config import ConfigProblem
from cncmon_core.edge_documents import Edge

log = logs.get(__name__)

SWEEP_S: Final = 30.0
_STREAM: Final = f"KV_{names.KV_STATUS}"
_PREFIX: Final = f"$KV.{names.KV_STATUS}."
_REPUBLISHED: Final = f"cncmon.kv.{names.KV_STATUS}."


class Configuration(msgspec.Struct):
    """What an edge says of its configuration."""

    revision: int | None = None
    sha256: str | None = None
    errors: list[ConfigProblem] = []
    refused_revision: int | None = None


class MachineBeat(msgspec.Struct):
    """What an edge says of a machine. signals: those that can't be read, and why."""

    id: str
    state: str = ""
    last_sample: datetime | None = None
    error: str | None = None
    machine_state: str | None = None
    signals: dict[str, str] = {}


class Buffer(msgspec.Struct):
    """What an edge says of its buffer."""

    hours_left: float | None = None


class Beat(msgspec.Struct):
    """A heartbeat, as far as it matters here. received: when it reached the server, or us."""

    version: str = ""
    machines: list[MachineBeat] = []
    config: Configuration = msgspec.field(default_factory=Configuration)
    buffer: Buffer = msgspec.field(default_factory=Buffer)
    problems: list[str] = []
    received: datetime = datetime.min.replace(tzinfo=UTC)

    def machine(self, name: str) -> MachineBeat | None:
        """Return what it says of a machine."""
        return next((one for one in self.machines if one.id == name), None)


class Heartbeats:
    """The newest heartbeat of each edge; `heard` is called with each edge that sent one."""

    def __init__(self, heard: Callable[[Edge], None]) -> None:
        self.by_edge: dict[Edge, Beat] = {}
        self._heard = heard

    async def follow(self, client: Client) -> None:
        """Listen and sweep, until cancelled."""
        subscription = await client.subscribe(f"{_REPUBLISHED}>", cb=self._on_message)
        try:
            while True:
                await self._sweep(client)
                await asyncio.sleep(SWEEP_S)
        finally:
            await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._take(message.subject.removeprefix(_REPUBLISHED), message.data, datetime.now(UTC))

    async def _sweep(self, client: Client) -> None:
        """Read every edge's last heartbeat: of one that fell silent nothing else would be known after a start."""
        js = client.jetstream(timeout=5)
        try:
            info = await js.stream_info(_STREAM, subjects_filter=f"{_PREFIX}>")
            for subject in info.state.subjects or {}:
                message = await js.get_last_msg(_STREAM, subject)
                self._take(subject.removeprefix(_PREFIX), message.data or b"", message.time or datetime.now(UTC))
        except nats.js.errors.NotFoundError as error:
            log.warning("heartbeats can't be read", error=str(error))

    def _take(self, key: str, data: bytes, received: datetime) -> None:
        site, _, edge = key.partition(".")
        known = self.by_edge.get((site, edge))
        if not data or (known is not None and known.received >= received):
            return
        try:
            beat = msgspec.json.decode(data, type=Beat)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("a heartbeat can't be read", edge=key, error=str(error))
            return
        beat.received = received
        self.by_edge[site, edge] = beat
        self._heard((site, edge))
