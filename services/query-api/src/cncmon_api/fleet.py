"""What is known of every machine: its newest sample, its state and since when. Pure: rows in, lists out."""

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cncmon_api.models import Machine, MachineInfo, Sample
from cncmon_core.states import NO_DATA

GAPS_MISSED: Final = 3
"""A machine is stale after missing as many samples, at the distance they had."""


@dataclass(slots=True)
class Known:
    """One machine. `since_open`: the beginning of its state is still to be searched in the database."""

    id: str
    site: str
    edge: str
    last: Sample | None = None
    since: datetime | None = None
    since_open: bool = False
    gaps: tuple[timedelta, timedelta] = (timedelta(0), timedelta(0))

    def follow(self, sample: Sample) -> None:
        """Make a sample the newest, and remember how far it is from the one before."""
        if self.last is not None:
            self.gaps = (self.gaps[1], sample.timestamp - self.last.timestamp)
        self.last = sample

    def stale_after(self, least: timedelta) -> timedelta:
        """Return the age at which the newest sample is stale: a machine polled once a minute is there between.

        The smaller of the last two gaps counts, so that one outage does not stretch the limit.
        """
        return max(least, GAPS_MISSED * min(self.gaps))


class Fleet:
    """All machines by id. Times are the edges' clocks; only staleness compares them with ours."""

    def __init__(self, stale_after: timedelta) -> None:
        self.by_id: dict[str, Known] = {}
        self._ids: list[str] = []
        self._stale_after = stale_after

    def set_machines(self, rows: list[tuple[str, str, str]]) -> None:
        """Take over which machines there are, as (id, site, edge)."""
        known = self.by_id
        self.by_id = {}
        for machine_id, site, edge in sorted(rows):
            machine = known.get(machine_id) or Known(machine_id, site, edge)
            machine.site, machine.edge = site, edge
            self.by_id[machine_id] = machine
        self._ids = list(self.by_id)

    def add(self, machine_id: str, samples: list[Sample], *, cut: bool) -> None:
        """Take over new samples of a machine, ascending and newer than the last. `cut`: older ones were left out."""
        machine = self.by_id[machine_id]
        if machine.last is None:
            machine.since_open = True
        elif cut:
            # The state may have changed, and changed back, in what was left out.
            machine.since_open = True
            if samples[0].state != machine.last.state:
                machine.since = None
            machine.last = samples[0]
        for sample in samples:
            if machine.last is not None and sample.state != machine.last.state:
                machine.since, machine.since_open = sample.timestamp, False
            machine.follow(sample)

    def open_states(self, limit: int) -> list[Known]:
        """Return up to `limit` machines whose state's beginning is still to be searched."""
        return [machine for machine in self.by_id.values() if machine.since_open][:limit]

    def infos(self, now: datetime, only: frozenset[str] | None = None) -> list[MachineInfo]:
        """Return the machines without samples, sorted by id; `only` these ids where given."""
        return [MachineInfo(*self._head(m, now)) for m in self.by_id.values() if only is None or m.id in only]

    def machines(self, now: datetime, after: str = "", limit: int | None = None) -> list[Machine]:
        """Return machines with their newest samples, sorted by id: those behind an id, at most so many."""
        first = bisect_right(self._ids, after) if after else 0
        chosen = self._ids[first:] if limit is None else self._ids[first : first + limit]
        return [Machine(*self._head(self.by_id[machine_id], now), self.by_id[machine_id].last) for machine_id in chosen]

    def _head(self, machine: Known, now: datetime) -> tuple[str, str, str, Any, datetime | None, bool]:
        last = machine.last
        if last is None:
            return machine.id, machine.site, machine.edge, NO_DATA, None, True
        state, since = last.state, machine.since
        stale = now - last.timestamp > machine.stale_after(self._stale_after)
        if stale:
            return machine.id, machine.site, machine.edge, NO_DATA, last.timestamp, True
        return machine.id, machine.site, machine.edge, state, since, False
