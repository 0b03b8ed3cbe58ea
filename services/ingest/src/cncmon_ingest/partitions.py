"""Partitions of samples, where the server has no chunks: made before the transaction that needs them (rule B6)."""

from collections.abc import Iterable
from datetime import datetime

import asyncpg

from cncmon_ingest import rows

REMEMBERED_MAX = 10_000


class Partitions:
    """Remembers for which days there are partitions. For one connection."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    async def ensure(self, connection: asyncpg.Connection, days: Iterable[int]) -> None:
        """Make what samples of these days (counted from 2000-01-01 UTC) need, each in a transaction of its own.

        Raises:
            asyncpg.PostgresError
        """
        missing = sorted(set(days) - self._known)
        for day in missing:
            await ensure_partition(connection, rows.TABLE, rows.beginning(day * rows.TICKS_A_DAY))
            self._known.add(day)
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()

    def forget(self) -> None:
        """Look again next time: retention may have dropped one."""
        self._known.clear()


async def ensure_partition(connection: asyncpg.Connection, table: str, moment: datetime) -> None:
    """Make the partition of a table that a moment lies in, unless it is there.

    One a statement: two hundred at once take as many times the locks, and with thousands there already the time of a
    transaction (`TRANSACTION_S_MAX`).

    Raises:
        asyncpg.PostgresError
    """
    await connection.execute("SELECT ensure_partition($1, $2)", table, moment)
