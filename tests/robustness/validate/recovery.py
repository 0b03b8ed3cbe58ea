"""How long it takes after a fault until the database has everything that was accepted before the fault ended."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Self

import asyncpg

from cncmon_ingest.errors import DATABASE_ERRORS

LOOK_S = 0.05
"""Time between two looks at the watermarks: the resolution of what is measured."""


class NotRecoveredError(AssertionError):
    """Something accepted does not arrive; names the epochs, where they stand and where they should."""


async def wait_for(
    dsn: str, ends: Mapping[int, int], still_s_max: float, *, began_s: float | None = None, watermark: bool = False
) -> list[float]:
    """Return for each epoch the seconds from `began_s` (monotonic; None: now) until it has arrived up to its end.

    Arrived is what is at or under the watermark, in the ledger or in a gap. watermark: wait until the watermark itself
    is there, without which no agent frees anything. A slow machine is waited for as long as anything arrives.

    Raises:
        NotRecoveredError: nothing has arrived for `still_s_max`, and something is missing.
    """
    began_s = time.monotonic() if began_s is None else began_s
    missing, took_s = dict(ends), []
    arrived, arrived_s = -1, time.monotonic()
    async with _Looks(dsn) as looks:
        while missing:
            reached = await looks.ask(_WATERMARKS if watermark else _ARRIVED, missing)
            now_s = time.monotonic()
            for epoch in [epoch for epoch, seq in missing.items() if reached.get(epoch, 0) >= seq]:
                del missing[epoch]
                took_s.append(now_s - began_s)
            if (progress := sum(reached.values()) + len(took_s)) > arrived:
                arrived, arrived_s = progress, now_s
            if missing and now_s - arrived_s > still_s_max:
                where = {epoch: f"{reached.get(epoch)} of {seq}" for epoch, seq in list(missing.items())[:5]}
                raise NotRecoveredError(
                    f"{len(missing)} of {len(ends)} epochs not recovered, "
                    f"and nothing came for {still_s_max:g} s: {where}"
                )
            if missing:
                await asyncio.sleep(LOOK_S)
    return took_s


async def have_arrived(dsn: str, ends: Mapping[int, int]) -> bool:
    """Whether every epoch has arrived up to its end by now; not where the database does not answer."""
    async with _Looks(dsn) as looks:
        reached = await looks.ask(_ARRIVED, ends)
    return all(reached.get(epoch, 0) >= seq for epoch, seq in ends.items())


_WATERMARKS = """
SELECT epoch, seq FROM unnest($1::bigint[], $2::bigint[]) AS e (epoch, last) JOIN watermarks USING (epoch)
"""


_ARRIVED = """
SELECT epoch, mark
    + (SELECT count(*) FROM ledger l WHERE l.epoch = e.epoch AND l.seq > mark AND l.seq <= last)
    + (SELECT coalesce(sum(least(seq_to, last) - greatest(seq_from, mark + 1) + 1), 0) FROM gaps g
       WHERE g.epoch = e.epoch AND seq_to > mark AND seq_from <= last) AS reached
FROM (
    SELECT epoch, last, coalesce(seq, 0) AS mark
    FROM unnest($1::bigint[], $2::bigint[]) AS e (epoch, last) LEFT JOIN watermarks USING (epoch)
) e
"""


class _Looks:
    """Looks at the database, over one connection for as long as it lasts: to make one each time takes the processor
    from those that are waited for.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._connection.close(timeout=5)

    async def ask(self, query: str, ends: Mapping[int, int]) -> dict[int, int]:
        """Return what a query finds of each epoch; nothing where the database does not answer."""
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._dsn, timeout=5)
            rows = await self._connection.fetch(query, list(ends), list(ends.values()), timeout=5)
        except DATABASE_ERRORS:
            lost, self._connection = self._connection, None
            if lost is not None:
                lost.terminate()
            return {}
        return {row[0]: int(row[1]) for row in rows}
