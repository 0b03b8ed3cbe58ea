"""Numbered plain SQL migrations with checksums, each in a transaction of its own, under an advisory lock."""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import asyncpg

from cncmon_core import logs
from cncmon_ingest.errors import MigrationError, OutageError

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
    def oldest(self) -> int:
        """The oldest program, by the latest migration that it knows, that may work on the schema after this one.

        `-- oldest program: N` in the text; 0 where nothing is said: it only adds, and any may.
        """
        found = re.search(r"^-- oldest program: (\d+)$", self.sql, re.MULTILINE)
        return int(found[1]) if found else 0

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
        OutageError: a right is missing; says which.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied timestamptz DEFAULT now())"
        )
        if not await connection.fetchval(_HAS_OLDEST):
            await connection.execute("ALTER TABLE schema_migrations ADD COLUMN oldest integer NOT NULL DEFAULT 0")
        applied = {row["number"]: row for row in await connection.fetch("SELECT * FROM schema_migrations")}
        migrations = shipped()
        _check(applied, migrations)
        missing = [migration for migration in migrations if migration.number not in applied]
        for migration in missing:
            async with connection.transaction():
                await _apply(connection, migration)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum, oldest) VALUES ($1, $2, $3, $4)",
                    *(migration.number, migration.name, migration.checksum, migration.oldest),
                )
            log.info("migration applied", number=migration.number, name=migration.name)
        return len(missing)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        await connection.execute(migration.sql)
    except asyncpg.InsufficientPrivilegeError as error:
        user = connection.get_settings().session_authorization
        todo = "grant it"
        if "extension" in str(error):
            todo = "as a superuser run CREATE EXTENSION timescaledb in this database, or grant it"
        raise OutageError(f"migration {migration.number} needs a right that {user} lacks: {todo} ({error})") from error


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


_HAS_OLDEST = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'schema_migrations'::regclass AND attname = 'oldest')
"""


async def version(connection: asyncpg.Connection) -> int:
    """Return the highest applied migration, 0 for an empty database."""
    return (await schema(connection)).number


class Schema(NamedTuple):
    """number: the highest migration applied. oldest: the oldest program that may work on it (`Migration.oldest`)."""

    number: int
    oldest: int

    def problem(self) -> str | None:
        """Return why this program can't work on it and what to do; None where it can."""
        if self.number < LATEST:
            return (
                f"the schema is at migration {self.number}, this program needs {LATEST}: run `cncmon-ingest bootstrap`"
            )
        if self.oldest > LATEST:
            return (
                f"the schema is at migration {self.number}, for programs that know migration {self.oldest} at least; "
                f"this one knows up to {LATEST}: use a newer version"
            )
        return None


async def schema(connection: asyncpg.Connection) -> Schema:
    """Return what the database's schema is; 0, 0 for an empty database."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return Schema(0, 0)
    # One that no program of today has looked after lacks the column.
    row = await connection.fetchrow(
        "SELECT coalesce(max(number), 0), coalesce(max((to_jsonb(m) ->> 'oldest')::int), 0) FROM schema_migrations m"
    )
    if row is None:
        raise AssertionError("an aggregate is always one row")
    return Schema(*row)
