"""Numbered plain SQL migrations with checksums, each in a transaction of its own, under an advisory lock."""

import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg

from cncmon_core import logs
from cncmon_ingest.errors import MigrationError

log = logs.get(__name__)

LOCK_KEY = 0x636E636D01
"""Advisory lock of migrations: "cncm" and 1."""


@dataclass(frozen=True)
class Migration:
    """One file `NNNN_name.sql`."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text: an applied migration must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped() -> list[Migration]:
    """Return the migrations of this version, in order."""
    found = []
    for file in resources.files("cncmon_ingest").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            number, name = file.name.removesuffix(".sql").split("_", 1)
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


LATEST = max(migration.number for migration in shipped())


async def migrate(connection: asyncpg.Connection) -> int:
    """Bring the schema to this version and return how many migrations were applied; 0 when it was there already.

    Raises:
        MigrationError: the schema is newer than this program, or an applied migration is not the one shipped.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied timestamptz DEFAULT now())"
        )
        applied = {row["number"]: row for row in await connection.fetch("SELECT * FROM schema_migrations")}
        migrations = shipped()
        _check(applied, migrations)
        missing = [migration for migration in migrations if migration.number not in applied]
        for migration in missing:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                    *(migration.number, migration.name, migration.checksum),
                )
            log.info("migration applied", number=migration.number, name=migration.name)
        return len(missing)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)


def _check(applied: dict[int, asyncpg.Record], migrations: list[Migration]) -> None:
    known = {migration.number: migration for migration in migrations}
    newer = sorted(set(applied) - set(known))
    if newer:
        raise MigrationError(
            f"the database's schema has migration {newer[-1]}, this program knows up to {LATEST}: use a newer version"
        )
    for number, row in applied.items():
        if row["checksum"] != known[number].checksum:
            raise MigrationError(
                f"migration {number} ({row['name']}) was applied with another text than is shipped here"
            )


async def version(connection: asyncpg.Connection) -> int:
    """Return the highest applied migration, 0 for an empty database."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    number: int = await connection.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations")
    return number
