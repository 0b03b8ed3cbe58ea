"""What the tables take: by PostgreSQL's own counts, so that asking costs nothing however large they are."""

from datetime import datetime

import asyncpg
import msgspec

# A table of chunks or partitions is the sum of these; one of partitions has none of the rows itself.
# reltuples: -1 where nobody has counted yet; then what was written since the statistics began.
_TABLES = """
WITH parts AS (
    SELECT c.relname AS name, c.oid AS whole, p.relid, CASE
        WHEN r.relkind <> 'r' THEN 0
        WHEN r.reltuples < 0 THEN pg_stat_get_live_tuples(p.relid)
        ELSE r.reltuples
    END AS rows
    FROM pg_class c
    CROSS JOIN LATERAL (
        SELECT c.oid AS relid UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid
    ) p JOIN pg_class r ON r.oid = p.relid
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
      AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
                      WHERE d.objid = c.oid AND d.deptype = 'e')
)
SELECT name, count(*) - 1 AS parts, sum(rows)::bigint AS rows,
       sum(pg_total_relation_size(relid))::bigint AS bytes, sum(pg_indexes_size(relid))::bigint AS index_bytes
FROM parts GROUP BY name ORDER BY bytes DESC, name
"""

# By the index, a machine at a time.
_SPAN = """
SELECT min(first) AS oldest, max(last) AS newest FROM machines m
CROSS JOIN LATERAL (SELECT min(time) AS first, max(time) AS last FROM sensor_data WHERE machine_id = m.machine_id) s
"""


class TableSize(msgspec.Struct):
    """One table with its indexes. rows: as last counted by PostgreSQL. parts: its chunks or partitions."""

    name: str
    rows: int
    bytes: int
    index_bytes: int
    parts: int


class Sizes(msgspec.Struct):
    """oldest, newest: of the samples; None where there are none."""

    database_bytes: int
    tables: list[TableSize]
    oldest: datetime | None
    newest: datetime | None

    @property
    def samples(self) -> TableSize:
        """The table of samples."""
        return next(table for table in self.tables if table.name == "sensor_data")

    @property
    def bytes_a_sample(self) -> float | None:
        """What a sample takes with its share of all tables; None before any was counted."""
        rows = self.samples.rows
        return sum(table.bytes for table in self.tables) / rows if rows else None

    @property
    def samples_a_second(self) -> float | None:
        """The mean over the time that samples are of; None where that is no time."""
        if self.oldest is None or self.newest is None or self.newest <= self.oldest:
            return None
        return self.samples.rows / (self.newest - self.oldest).total_seconds()


async def measure(connection: asyncpg.Connection) -> Sizes:
    """Return the sizes as they are now.

    Raises:
        asyncpg.PostgresError
    """
    tables = [TableSize(**dict(row)) for row in await connection.fetch(_TABLES)]
    [span] = await connection.fetch(_SPAN)
    return Sizes(
        database_bytes=await connection.fetchval("SELECT pg_database_size(current_database())"),
        tables=tables,
        oldest=span["oldest"],
        newest=span["newest"],
    )
