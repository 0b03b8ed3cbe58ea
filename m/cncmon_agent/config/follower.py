"""Follows the edge's configuration and applies it: from disk at start, from KV `edge_config` while connected.

A change is heard of on the bucket's republish subject (`kv.watch` can't be confined to one edge) and is then read by
direct get; a poll finds what was not heard. Whatever can't be used is refused whole and reported, and what runs goes
on; so it does when the bucket or the key is gone. Where `CNCMON_AGENT_MACHINES` names files, these are it, and nothing
is followed.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_agent.config.bucket import Bucket, Mark, Value
from cncmon_agent.config.current import DOUBT_S, Current
from cncmon_agent.config.report import ConfigReport, Source
from cncmon_agent.config.store import ConfigStore
from cncmon_agent.settings import AgentSettings
from cncmon_core import edge_config, logs, names
from cncmon_core.edge_config import ConfigProblem, EdgeConfig
from cncmon_core.errors import ConfigError, EdgeConfigError
from cncmon_core.machine import Machine

log = logs.get(__name__)

AGAIN_S = 1.0
"""Between two reads of a value that is doubted."""

LATE_S = 0.25
"""After a read that was answered by a replica that has not got what was republished."""


class ConfigFollower:
    """Knows what is configured and hands it to `apply`, all machines at once.

    report: for the heartbeat. changed: set when there is a new one, so that who waits for it hears of it at once.
    """

    def __init__(
        self, settings: AgentSettings, folder: Path | None, apply: Callable[[dict[str, Machine]], None]
    ) -> None:
        """folder: where the last good configuration is kept; None: nowhere."""
        self._settings = settings
        self._store = ConfigStore(folder, settings.site, settings.edge) if folder is not None else None
        self._apply = apply
        self._current = Current()
        self._config: EdgeConfig | None = None
        self._read_sha256: bytes | None = None
        self._refused: list[ConfigProblem] = []
        self._lack: list[ConfigProblem] = []
        self._unkept: list[ConfigProblem] = []
        self._to_keep: EdgeConfig | None = None
        self._kept: tuple[int, str] | None = None
        self._keeping: asyncio.Future[None] | None = None
        self._told = asyncio.Event()
        self._told_seq, self._told_s = 0, 0.0
        self.report = ConfigReport()
        self.changed = asyncio.Event()

    async def start(self) -> None:
        """Apply what needs no network: the files, or what was last good."""
        if self._settings.machines:
            self._take_files()
            return
        if self._store is None:
            return
        try:
            config = await asyncio.to_thread(self._store.load)
        except ConfigError as error:
            log.error("the configuration kept on disk is not used", reason=str(error))
            self._unkept = [ConfigProblem("", "", str(error))]
            self._say()
            return
        if config is not None:
            self._kept = (config.revision, config.sha256)
            self._put_in_force(config, "disk")

    def _take_files(self) -> None:
        # It takes PyYAML along, which nobody else in here needs.
        from cncmon_core import machine_files

        site, edge = self._settings.site, self._settings.edge
        found = machine_files.load([Path(path) for path in self._settings.machines])
        for problem in found.problems:
            log.error("machine document left out", problem=str(problem))
        mine = [m for m in found.machines.values() if (m.spec.site, m.spec.edge) == (site, edge)]
        self._refused = [
            ConfigProblem(problem.document.removeprefix("Machine "), problem.path, str(problem))
            for problem in found.problems
        ]
        config = edge_config.make(site, edge, 1, mine)
        self.report = ConfigReport(source="files", sha256=config.sha256, errors=self._refused)
        self._apply(config.by_name)

    async def follow(self, client: Client) -> None:
        """Follow the key as long as the connection lasts; return at once where files are used."""
        if self._settings.machines:
            return
        site, edge = self._settings.site, self._settings.edge
        bucket = Bucket(client, site, edge)
        await client.subscribe(names.republish_subject(names.KV_CONFIG, site, edge), cb=self._on_republished)
        last: Mark | None = None
        settled: Mark | None = None
        while True:
            self._told.clear()
            pause_s: float | None = None
            try:
                mark = await bucket.mark()
                if mark is None or mark != settled or self._told_seq:
                    pause_s = self._look(await bucket.read())
                    # Read until it is so twice: the replica that answered may lag behind the one that gave the mark.
                    settled = mark if mark == last and pause_s is None else None
                    last = mark
            except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
                log.warning("the configuration can't be asked for", error=str(error) or type(error).__name__)
            await self._keep()
            await self._pause(pause_s)

    async def _on_republished(self, message: Msg) -> None:
        self._told_seq, self._told_s = int((message.headers or {}).get("Nats-Sequence") or 0), time.monotonic()
        self._told.set()

    async def _pause(self, at_most_s: float | None) -> None:
        """Wait for the next poll, with jitter so that a thousand edges don't ask at once, or to be told of a change."""
        pause_s = self._settings.config_poll_ms / 1000 * random.uniform(0.75, 1.25)  # noqa: S311 no secret
        try:
            await asyncio.wait_for(self._told.wait(), pause_s if at_most_s is None else min(pause_s, at_most_s))
        except TimeoutError:
            return

    def _look(self, value: Value | None) -> float | None:
        """Take what was read; return how soon it must be read again, in seconds, or None for the next poll."""
        now_s = time.monotonic()
        if value is None:
            self._lacks()
        elif self._current.believe(value.version, now_s):
            self._lack = []
            self._judge(value.data)
        seq = value.version.seq if value is not None else 0
        if seq < self._told_seq and now_s - self._told_s < DOUBT_S:
            return LATE_S
        self._told_seq = 0
        return AGAIN_S if self._current.doubts else None

    def _lacks(self) -> None:
        """The bucket holds no document for us: what runs goes on."""
        if self._config is None:
            return
        if not self._lack:
            log.warning("KV edge_config holds nothing for this edge", in_force=self._config.revision)
        place = f"KV {names.KV_CONFIG} holds no {names.edge_key(self._settings.site, self._settings.edge)}"
        self._lack = [ConfigProblem("", "", f"{place}: revision {self._config.revision} runs on")]
        # Were the very same bytes to come back, they would have to count as news.
        self._read_sha256 = None
        self._say("disk")

    def _judge(self, data: bytes) -> None:
        sha256 = hashlib.sha256(data).digest()
        if sha256 == self._read_sha256:
            return
        self._read_sha256 = sha256
        try:
            config = edge_config.decode(data, self._settings.site, self._settings.edge)
        except EdgeConfigError as error:
            log.error(
                "the new configuration is refused",
                revision=error.revision,
                in_force=self._config.revision if self._config else None,
                problems=[str(problem) for problem in error.problems],
            )
            self._refused = error.problems
            self._say(refused_revision=error.revision)
            return
        self._put_in_force(config, "kv")
        self._to_keep = config if self._kept != (config.revision, config.sha256) else None

    def _put_in_force(self, config: EdgeConfig, source: Source) -> None:
        was, self._config = self._config, config
        self._refused = []
        self._say(source)
        if was is None or was.sha256 != config.sha256:
            log.info("configuration applied", revision=config.revision, source=source, machines=len(config.machines))
            self._apply(config.by_name)

    def _say(self, source: Source | None = None, refused_revision: int | None = None) -> None:
        was = self.report
        self.report = ConfigReport(
            revision=self._config.revision if self._config else None,
            sha256=self._config.sha256 if self._config else None,
            source=source or was.source,
            errors=[*self._refused, *self._lack, *self._unkept],
            refused_revision=refused_revision if self._refused else None,
        )
        if self.report != was:
            self.changed.set()

    async def _keep(self) -> None:
        """Write what was applied to disk; what can't be written is tried again at the next poll."""
        if self._keeping is not None and not self._keeping.done():
            # A session that ended left it to its thread.
            await asyncio.wait([self._keeping])
        config, store = self._to_keep, self._store
        if config is None or store is None:
            return
        self._keeping = asyncio.ensure_future(asyncio.to_thread(store.save, config))
        try:
            await asyncio.shield(self._keeping)
        except OSError as error:
            said = f"can't be kept on disk, and is lost at a restart without network: {error.strerror or error}"
            if not self._unkept:
                log.error("the configuration is not kept", error=str(error))
            self._unkept = [ConfigProblem("", "", said)]
        else:
            self._unkept = []
            self._kept = (config.revision, config.sha256)
            if self._to_keep is config:
                self._to_keep = None
        self._say(refused_revision=self.report.refused_revision)
