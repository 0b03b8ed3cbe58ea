"""What the edges say of a configuration that was written: each reports in its heartbeat what it runs and refused."""

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_core import names
from cncmon_core.edge_config import ConfigProblem, EdgeConfig

State = Literal["applied", "refused", "superseded", "fixed", "not heard"]


class _Config(msgspec.Struct):
    revision: int | None = None
    sha256: str | None = None
    source: str = ""
    errors: list[ConfigProblem] = []
    refused_revision: int | None = None


class _Heartbeat(msgspec.Struct):
    config: _Config = msgspec.field(default_factory=_Config)


class Outcome(msgspec.Struct, frozen=True):
    """What became of an edge's configuration.

    applied: it runs. refused: `errors` say why, the one before runs on. superseded: a later one runs. fixed: the agent
    reads files of its own (CNCMON_AGENT_MACHINES). not heard: no word of it in time; an edge that is away takes it when
    it is back.
    """

    state: State
    errors: list[ConfigProblem] = []


def judge(heartbeat: bytes, wanted: EdgeConfig) -> Outcome | None:
    """Return what a heartbeat says of a configuration, or None where it says nothing of it."""
    try:
        said = msgspec.json.decode(heartbeat, type=_Heartbeat).config
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if said.source == "files":
        return Outcome("fixed")
    if said.refused_revision == wanted.revision:
        return Outcome("refused", said.errors)
    if said.revision == wanted.revision and said.sha256 == wanted.sha256:
        return Outcome("applied")
    if said.revision is not None and said.revision > wanted.revision:
        return Outcome("superseded")
    return None


class Heard:
    """Listens to the edges from before the write, so that no heartbeat after it is missed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last: dict[str, bytes] = {}
        self._news = asyncio.Event()

    async def listen(self, edges: Sequence[tuple[str, str]]) -> None:
        """Begin to listen."""
        for site, edge in edges:
            await self._client.subscribe(names.republish_subject(names.KV_STATUS, site, edge), cb=self._on_heartbeat)
        await self._client.flush()

    async def _on_heartbeat(self, message: Msg) -> None:
        self._last[message.subject] = message.data
        self._news.set()

    async def wait(self, wanted: Sequence[EdgeConfig], seconds: float) -> list[Outcome]:
        """Return what each edge says of its configuration, after so many seconds at most."""
        found: list[Outcome | None] = [None] * len(wanted)
        try:
            async with asyncio.timeout(seconds):
                while None in found:
                    self._news.clear()
                    found = [self._judged(config) for config in wanted]
                    if None in found:
                        await self._news.wait()
        except TimeoutError:
            found = [self._judged(config) for config in wanted]
        return [outcome or Outcome("not heard") for outcome in found]

    def _judged(self, config: EdgeConfig) -> Outcome | None:
        last = self._last.get(names.republish_subject(names.KV_STATUS, config.site, config.edge))
        return None if last is None else judge(last, config)
