"""The one task that reads what is new, for all live clients and for the list of machines.

Each machine is asked for rows newer than the newest it has given: an index look-up a machine, whatever the edges'
clocks say. So late rows (a backlog sent after an outage) do not go to live; they are in the samples and series.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final

from cncmon_api import metrics
from cncmon_api.database import Database
from cncmon_api.edges import read_silences
from cncmon_api.errors import DatabaseDownError, UnavailableError
from cncmon_api.fleet import Fleet, Known
from cncmon_api.live import Hub
from cncmon_api.models import LiveEdge, Sample
from cncmon_api.rows import SELECTED, sample_of
from cncmon_api.settings import ApiSettings
from cncmon_core.states import STATE_SQL

ROWS_MAX: Final = 50
"""New samples of one machine read in one tick: 100 Hz at the default tick."""
ROWS_MAX_ALL: Final = 1_000
"""The same where a client wants every sample: 100 s at 10 Hz, so a short outage of ingest leaves no hole in live."""
LOOKBACK_BATCH: Final = 10
LOOKBACK_BUDGET_S: Final = 0.2
"""How long one tick may search for beginnings of states before it lets live go first again."""
SLOW_S: Final = 3.0
"""So long a tick may take until clients are told that the database does not answer; statements have longer to end."""
_HANGS: Final = "The database does not answer. This service goes on asking."
_TOO_SLOW: Final = "The database answers too slowly to follow the machines. This service tries again by itself."
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(days=1)

FLEET_MAX: Final = 50_000
"""Machines that are followed, as many as ingest takes by default: 65 MiB. The first by id; more are counted."""

_MACHINES_SQL: Final = "SELECT machine_id, site, edge FROM machines ORDER BY machine_id LIMIT $1"
_MACHINES_NUMBER_SQL: Final = "SELECT count(*) AS number FROM machines"

_NEW_SQL: Final = f"""
SELECT new.*
FROM unnest($1::text[], $2::timestamptz[], $3::int[]) AS known(machine_id, since, rows_max)
CROSS JOIN LATERAL (
    SELECT {SELECTED}
    FROM sensor_data
    WHERE machine_id = known.machine_id AND time > known.since
    ORDER BY time DESC
    LIMIT known.rows_max
) AS new
"""  # noqa: S608 only constants

# The newest sample of another state within the look-back, and the first sample after it. Without one: the very first
# sample there is, if that lies within the look-back; else nothing.
_SINCE_SQL: Final = f"""
SELECT known.machine_id,
    CASE WHEN other.time IS NOT NULL OR NOT EXISTS (
        SELECT FROM sensor_data WHERE machine_id = known.machine_id AND time < known.at - $4::interval
    ) THEN (
        SELECT time FROM sensor_data
        WHERE machine_id = known.machine_id AND time <= known.at
            AND time > coalesce(other.time, known.at - $4::interval - interval '1 microsecond')
        ORDER BY time LIMIT 1
    ) END AS since
FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS known(machine_id, at, state)
LEFT JOIN LATERAL (
    SELECT time FROM sensor_data
    WHERE machine_id = known.machine_id AND time < known.at AND time >= known.at - $4::interval
        AND {STATE_SQL} IS DISTINCT FROM known.state
    ORDER BY time DESC LIMIT 1
) AS other ON true
"""  # noqa: S608 only constants


class Poller:
    """Reads new rows once a tick, follows states, and hands news to the hub."""

    def __init__(self, settings: ApiSettings, database: Database, hub: Hub) -> None:
        self.fleet = Fleet(timedelta(milliseconds=settings.stale_after_ms))
        self._settings = settings
        self._database = database
        self._hub = hub
        self._lock = asyncio.Lock()
        self._done_s: float | None = None
        self._error: UnavailableError | None = None
        self._hangs = False
        hub.fleet = self.fleet

    @property
    def trouble(self) -> str | None:
        """One sentence on what is wrong with the database, or None: the check for readiness."""
        if self._hangs:
            return _HANGS
        return self._error.detail if self._error is not None else self._database.trouble

    async def run(self) -> None:
        """Tick for ever: often while someone looks, seldom otherwise."""
        while True:
            tick_ms = self._settings.tick_ms if self._hub.clients else self._settings.idle_tick_ms
            begun_s = time.monotonic()
            with contextlib.suppress(UnavailableError):  # told to clients and in the log by then
                await self.refresh(max_age_s=0)
            left_s = tick_ms / 1000 - (time.monotonic() - begun_s)
            with contextlib.suppress(TimeoutError):
                # A first client ends the long wait.
                await asyncio.wait_for(self._hub.arrived.wait(), max(left_s, tick_ms / 5000))
                self._hub.arrived.clear()

    async def refresh(self, max_age_s: float | None = None) -> Fleet:
        """Return the fleet as it was at most a tick (or `max_age_s`) ago. Callers at the same time share one query.

        Raises:
            UnavailableError: the database can't answer, could not within the last tick, or has hung for a while.
        """
        if max_age_s is None:
            max_age_s = self._settings.tick_ms / 1000
        asked_s = time.monotonic()
        if self._hangs:
            raise DatabaseDownError(_HANGS)
        async with self._lock:
            # What another caller learned while we waited for the lock is fresh enough for us.
            if self._done_s is None or self._done_s < asked_s - max_age_s:
                await self._tick()
            if self._error is not None:
                raise self._error
            return self.fleet

    async def _tick(self) -> None:
        watch = asyncio.get_running_loop().call_later(SLOW_S, self._tell_hang)
        try:
            with metrics.TICK.time():
                news = await self._read()
                edges = await self._read_edges()
            await self._search_beginnings()
        except UnavailableError as error:
            self._error = error if isinstance(error, DatabaseDownError) else DatabaseDownError(_TOO_SLOW)
            self._hub.tell_unavailable(self._error.detail)
        else:
            self._error = None
            self._hub.tell_news(datetime.now(UTC), news, edges)
        finally:
            watch.cancel()
            self._hangs = False
            self._done_s = time.monotonic()

    def _tell_hang(self) -> None:
        self._hangs = True
        self._hub.tell_unavailable(_HANGS)

    async def _read_edges(self) -> list[LiveEdge]:
        stale_after = timedelta(milliseconds=self._settings.edge_stale_after_ms)
        silences = await read_silences(self._database, stale_after)
        machines = Counter((machine.site, machine.edge) for machine in self.fleet.by_id.values())
        return [LiveEdge(*origin, since, machines[origin]) for origin, since in silences.items()]

    async def _read(self) -> dict[str, list[Sample]]:
        """Return the new samples by machine, ascending, after taking them over into the fleet."""
        fleet = self.fleet
        machines = await self._database.fetch(_MACHINES_SQL, FLEET_MAX)
        if len(machines) == FLEET_MAX:
            (row,) = await self._database.fetch(_MACHINES_NUMBER_SQL)
            metrics.MACHINES_LEFT_OUT.set(row["number"] - FLEET_MAX)
        fleet.set_machines([(row["machine_id"], row["site"], row["edge"]) for row in machines])
        wanted = self._hub.wanted_whole()
        ids, since, rows_max = [], [], []
        for machine in fleet.by_id.values():
            ids.append(machine.id)
            since.append(machine.last.timestamp if machine.last else _NEVER)
            rows_max.append(1 if machine.last is None else ROWS_MAX_ALL if machine.id in wanted else ROWS_MAX)
        rows = await self._database.fetch(_NEW_SQL, ids, since, rows_max)
        news: dict[str, list[Sample]] = {}
        limits = dict(zip(ids, rows_max, strict=True))
        for machine_id, group in groupby(rows, itemgetter(0)):
            samples = [sample_of(row) for row in group]
            samples.reverse()
            cut = len(samples) == limits[machine_id]
            if cut and fleet.by_id[machine_id].last is not None:
                metrics.LIVE_CUT.inc()
            fleet.add(machine_id, samples, cut=cut)
            news[machine_id] = samples
        return news

    async def _search_beginnings(self) -> None:
        deadline_s = time.monotonic() + LOOKBACK_BUDGET_S
        for batch in self._open_batches():
            known = [(m.id, m.last.timestamp, m.last.state) for m in batch if m.last is not None]
            ids, at, states = zip(*known, strict=True)
            lookback = timedelta(milliseconds=self._settings.lookback_ms)
            rows = await self._database.fetch(_SINCE_SQL, ids, at, states, lookback)
            since = {row["machine_id"]: row["since"] for row in rows}
            for machine in batch:
                machine.since, machine.since_open = since[machine.id], False
            if time.monotonic() > deadline_s:
                return

    def _open_batches(self) -> Iterator[list[Known]]:
        while batch := self.fleet.open_states(LOOKBACK_BATCH):
            yield batch
