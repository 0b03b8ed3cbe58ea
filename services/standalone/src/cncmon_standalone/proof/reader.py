"""An outside SQL reader that notes when each new sample of a few machines can first be queried.

A process and a connection of its own, so that neither the supervisor's work nor the services' shows in what it sees:
`python -m cncmon_standalone.proof.reader OUTPUT MACHINE…`, the DSN in `CNCMON_READER_DSN`, the time from one look to
the next in `CNCMON_READER_INTERVAL_MS`. It looks until SIGTERM, then once more, and writes to OUTPUT a JSON array of
`[machine_id, poll_counter, seen_ns]` (Unix ns). Once a second it prints `{"p50_ms", "p99_ms"}` of that second, measured
from the samples' own timestamps, for the live line.

A look is an index lookup a machine: rows after the newest one up to which nothing is missing. A row may come out of
turn (two workers, a redelivery after 30 s), so polls that are missing below the newest are looked for too: within the
look for `HOLE_S`, later by a sweep every `SWEEP_S`, so that a hole that never fills does not make every look longer.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
from asyncpg.prepared_stmt import PreparedStatement

from cncmon_standalone.embedded.database import ERRORS as DATABASE_ERRORS

HOLE_S = 1.0
SWEEP_S = 0.1
SWEPT_S = 120.0
"""For so long, that is: what comes later still is seen by the last look only."""
REPORT_S = 1.0
ROWS_MAX = 1000
_RETRY_S = 0.02
_BY_INDEX = {"enable_seqscan": "off", "enable_sort": "off", "enable_bitmapscan": "off"}
"""A look is planned once. Planned while the table was empty, it would read all of it, for seconds, until the next
ANALYZE: then it is the reader that is late, and takes a third of a core from those whom it watches.
"""

_LOOK = """
SELECT p.id, s.time, (s.extras->>'poll_counter')::bigint
FROM unnest($1::text[], $2::timestamptz[]) AS p (id, after)
CROSS JOIN LATERAL (
    SELECT time, extras FROM sensor_data
    WHERE machine_id = p.id AND time > p.after ORDER BY machine_id, time LIMIT $3
) s WHERE s.extras ? 'poll_counter'
"""


@dataclass
class Machine:
    """What has been seen of one machine. `floor`, `floor_counter`: up to there all is seen, or left to the sweep."""

    floor: datetime
    floor_counter: int | None = None
    above: dict[int, datetime] = field(default_factory=dict)
    hole_since: float | None = None
    missing: dict[int, datetime] = field(default_factory=dict)

    def note(self, counter: int, at: datetime) -> bool:
        """Take a row; return whether it is new."""
        if self.floor_counter is None:
            self.floor, self.floor_counter = at, counter
            return True
        if counter <= self.floor_counter:
            return self.missing.pop(counter, None) is not None
        if counter in self.above:
            return False
        self.above[counter] = at
        self._advance()
        return True

    def _advance(self) -> None:
        while self.floor_counter is not None and self.floor_counter + 1 in self.above:
            self.floor_counter += 1
            self.floor = self.above.pop(self.floor_counter)
            self.hole_since = None

    def give_holes_to_sweep(self, now_s: float) -> None:
        """Go on past polls that have been missing for long."""
        if not self.above or self.floor_counter is None:
            return
        if self.hole_since is None:
            self.hole_since = now_s
        elif now_s - self.hole_since > HOLE_S:
            for counter in range(self.floor_counter + 1, min(self.above)):
                self.missing[counter] = self.floor
            self.floor_counter = min(self.above) - 1
            self._advance()

    def oldest_missing(self, however_old: bool) -> datetime:
        """Return from where to look for what is missing."""
        since = datetime.min.replace(tzinfo=UTC) if however_old else datetime.now(UTC) - timedelta(seconds=SWEPT_S)
        return min((at for at in self.missing.values() if at > since), default=self.floor)


class Reader:
    """Looks again and again, and remembers when it saw what."""

    def __init__(self, dsn: str, machines: list[str], interval_s: float, stop: asyncio.Event) -> None:
        start = datetime.now(UTC)
        self.seen: list[tuple[str, int, int]] = []
        self._machines = {name: Machine(start) for name in machines}
        self._dsn = dsn
        self._interval_s = interval_s
        self._stop = stop
        self._latencies_ms: list[float] = []
        self._swept_s = self._reported_s = time.monotonic()

    async def run(self) -> None:
        """Look until told to stop; a database that is away is waited for, and the wait is part of what is seen."""
        while not self._stop.is_set():
            try:
                connection = await asyncpg.connect(self._dsn, timeout=2, server_settings=_BY_INDEX)
            except DATABASE_ERRORS:
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                await self._look_until_stop(connection)
                return
            except DATABASE_ERRORS:
                await asyncio.sleep(_RETRY_S)
            finally:
                connection.terminate()

    async def _look_until_stop(self, connection: asyncpg.Connection) -> None:
        look = await connection.prepare(_LOOK)
        last = False
        while True:
            began = time.monotonic()
            last = self._stop.is_set()
            sweep = last or began - self._swept_s > SWEEP_S
            await self._look(look, sweep=sweep, last=last)
            if last:
                return
            self._report(began)
            await asyncio.sleep(max(0.0, began + self._interval_s - time.monotonic()))

    async def _look(self, look: "PreparedStatement[asyncpg.Record]", *, sweep: bool, last: bool) -> None:
        names = list(self._machines)
        now_s = time.monotonic()
        floors = []
        for machine in self._machines.values():
            machine.give_holes_to_sweep(now_s)
            floors.append(machine.oldest_missing(last) if sweep else machine.floor)
        if sweep:
            self._swept_s = now_s
        rows = await look.fetch(names, floors, None if sweep else ROWS_MAX, timeout=10)
        seen_ns = time.time_ns()
        for name, at, counter in rows:
            if self._machines[name].note(counter, at):
                self.seen.append((name, counter, seen_ns))
                self._latencies_ms.append(seen_ns / 1e6 - at.timestamp() * 1e3)

    def _report(self, now_s: float) -> None:
        if now_s - self._reported_s < REPORT_S:
            return
        self._reported_s = now_s
        found = sorted(self._latencies_ms)
        self._latencies_ms.clear()
        if found:
            p50, p99 = (found[min(len(found) - 1, int(len(found) * part))] for part in (0.5, 0.99))
            sys.stdout.write(f'{{"p50_ms": {p50:.1f}, "p99_ms": {p99:.1f}}}\n')
            sys.stdout.flush()


async def _main(machines: list[str]) -> list[tuple[str, int, int]]:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    interval_s = float(os.environ["CNCMON_READER_INTERVAL_MS"]) / 1000
    reader = Reader(os.environ["CNCMON_READER_DSN"], machines, interval_s, stop)
    await reader.run()
    return reader.seen


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        Path(sys.argv[1]).write_bytes(msgspec.json.encode(asyncio.run(_main(sys.argv[2:]))))
