"""Partitions of samples, where the server has no chunks: made before the transaction that needs them (rule B6)."""

from collections.abc import Iterable

import asyncpg

from cncmon_ingest import rows

REMEMBERED_MAX = 10_000


class Partitions:
    """Remembers for which days there are partitions. For one connection."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    async def ensure(self, connection: asyncpg.Connection, days: Iterable[int]) -> None:
        """Make what samples of these days (counted from 2000-01-01 UTC) need, in a transaction of its own.

        Raises:
            asyncpg.PostgresError
        """
        missing = sorted(set(days) - self._known)
        if not missing:
            return
        await connection.execute(
            "SELECT ensure_partition($1, day) FROM unnest($2::timestamptz[]) AS day",
            *(rows.TABLE, [rows.beginning(day * rows.TICKS_A_DAY) for day in missing]),
        )
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()
        self._known.update(missing)

    def forget(self) -> None:
        """Look again next time: retention may have dropped one."""
        self._known.clear()
