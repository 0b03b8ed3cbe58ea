"""How soon live samples can be queried while something else goes on, as seen by an outside reader's own process."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from cncmon_standalone.proof.compare import Window
from cncmon_standalone.proof.latency import Latency, measure, probes_of
from robustness.traffic.child import Child
from robustness.validate.promised import Promised

INTERVAL_MS = 20


class Live:
    """What a reader saw of a few machines. Ask for `latency` when the reader has ended."""

    def __init__(self, seen: Path, machines: Sequence[str]) -> None:
        self.seen = seen
        self.probes = probes_of(machines)
        self._start_ns = time.time_ns()
        self._end_ns = self._start_ns

    def begin(self) -> None:
        """From now on samples count."""
        self._start_ns = time.time_ns()

    def end(self) -> None:
        """From now on they don't."""
        self._end_ns = time.time_ns()

    def latency(self, accepted: Iterable[Path], polls: Path) -> Latency:
        """Return the latencies of what was answered in between."""
        return measure(self.seen, Promised(accepted), polls, Window(self._start_ns, self._end_ns), self.probes)


@contextlib.asynccontextmanager
async def watching(dsn: str, folder: Path, machines: Sequence[str]) -> AsyncIterator[Live]:
    """Run a reader until the block ends."""
    live = Live(folder / "seen.json", machines)
    environ = {"CNCMON_READER_DSN": dsn, "CNCMON_READER_INTERVAL_MS": str(INTERVAL_MS)}
    argv = ["-m", "cncmon_standalone.proof.reader", str(live.seen), *live.probes]
    reader = Child("reader", folder, argv, environ)
    reader.start()
    try:
        yield live
    finally:
        await reader.stop()
