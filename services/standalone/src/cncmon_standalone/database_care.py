"""`cncmon db`: what the database takes, whether it is fit for this program, and its tables' version."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cncmon_core import logs
from cncmon_ingest import compression, dirty, durability, maintenance, migrate, rollups, sizes
from cncmon_ingest.errors import MigrationError, OutageError
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import adopting, console
from cncmon_standalone.database import connected
from cncmon_standalone.errors import StandaloneError

_YEAR_S: Final = 365 * 86_400
_OURS: Final = (
    "sensor_data", "machines", "ledger", "ledger_unidentified", "watermarks", "dead_letters", "gaps", "events",
    "delivery", "edges", "edge_epochs", "storage", "dirty_ranges", "state_intervals",
    "rollup_10s", "rollup_1min", "rollup_1h",
    "folded_epochs", "folded_totals", "dead_letter_totals", "machine_owners", "edge_silences",
)  # fmt: skip
SERVER_VERSION_MIN: Final = 15


class Finding(msgspec.Struct):
    """One check. todo: what to do about it; empty where it is well."""

    check: str
    says: str
    todo: str = ""


async def size(data: Path | None, *, dsn: str | None, as_json: bool) -> None:
    """Print what the tables take."""
    async with connected(data, dsn) as connection:
        found = await sizes.measure(connection)
    if as_json:
        more = {"bytes_a_sample": found.bytes_a_sample, "samples_a_second": found.samples_a_second}
        print(msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(found) | more)).decode())
        return
    out = console.for_people()
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("table", "rows", "size", "of it indexes", "parts"):
        table.add_column(title, justify="left" if title == "table" else "right")
    for one in found.tables:
        table.add_row(one.name, f"{one.rows:,}", decimal(one.bytes), decimal(one.index_bytes), str(one.parts or ""))
    out.print(table)
    out.print(f"\nThe database is {decimal(found.database_bytes)}. Rows are as PostgreSQL last counted them.")
    each, rate = found.bytes_a_sample, found.samples_a_second
    if each is not None:
        out.print(f"A million samples take {decimal(round(each * 1e6))} with indexes and ledger.")
    if each is not None and rate is not None:
        out.print(
            f"Since {found.oldest:%Y-%m-%d %H:%M} UTC {rate:,.1f} samples a second came: a year like that takes "
            f"{decimal(round(each * rate * _YEAR_S))}.",
            soft_wrap=True,
        )


async def check(data: Path | None, *, dsn: str | None, as_json: bool) -> int:
    """Print what was checked; return the exit status."""
    async with connected(data, dsn) as connection:
        found = await findings(connection)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        out = console.for_people()
        for one in found:
            mark = "[red]×[/]" if one.todo else "[green]√[/]"
            out.print(f"  {mark} {one.check:<12} {escape(one.says)}", soft_wrap=True)
            if one.todo:
                out.print(f"    {'':<12} [dim]→[/] {escape(one.todo)}", soft_wrap=True)
    return 1 if any(one.todo for one in found) else 0


async def findings(connection: asyncpg.Connection) -> list[Finding]:
    """Check version, tables, rights, durability and room for connections."""
    return [
        _server(connection),
        await _tables(connection),
        await _rights(connection),
        await _leads(connection),
        await _durability(connection),
        await _connections(connection),
        await _extension(connection),
        await _rollups(connection),
        await _locks(connection),
    ]


def _server(connection: asyncpg.Connection) -> Finding:
    version = connection.get_server_version()
    old = version.major < SERVER_VERSION_MIN
    return Finding("server", f"PostgreSQL {version.major}.{version.minor}",
                   f"PostgreSQL {SERVER_VERSION_MIN} or newer is needed" if old else "")  # fmt: skip


async def _tables(connection: asyncpg.Connection) -> Finding:
    found = await migrate.schema(connection)
    says = f"version {found.number}, this program knows {migrate.LATEST}"
    if found.oldest > migrate.LATEST:
        return Finding("tables", says, "this program is too old for the tables: use a newer one")
    return Finding("tables", says, "run: cncmon db upgrade" if found.number < migrate.LATEST else "")


async def _rights(connection: asyncpg.Connection) -> Finding:
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        return Finding("rights", "a replica: it can be read and not written", "ingest needs the primary's URL")
    if await connection.fetchval("SHOW default_transaction_read_only") == "on":
        return Finding("rights", "read-only by its settings", "set default_transaction_read_only = off")
    query = """
    SELECT DISTINCT t FROM unnest($1::text[]) AS t, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed
    WHERE to_regclass(t) IS NOT NULL AND NOT has_table_privilege(t, needed) ORDER BY t
    """
    missing = [row["t"] for row in await connection.fetch(query, _OURS)]
    user = await connection.fetchval("SELECT current_user")
    if missing:
        return Finding("rights", f"{user} may not write {', '.join(missing)}",
                       f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(missing)} TO {user}")  # fmt: skip
    return Finding("rights", f"{user} may read and write")


async def _leads(connection: asyncpg.Connection) -> Finding:
    refused, adopted = await adopting.state(connection)
    if adopted:
        return Finding("identity", "adopted: it leads once ingest runs on it")
    if refused:
        return Finding("identity", f"it is not the stream's database: {refused}", adopting.ADVICE)
    return Finding("identity", "no other database is known to have the stream's samples")


async def _durability(connection: asyncpg.Connection) -> Finding:
    values = await durability.values(connection)
    says = ", ".join(f"{name} {value}" for name, value in values.items())
    return Finding("durability", says, "; ".join(durability.advice(values).values()))


async def _connections(connection: asyncpg.Connection) -> Finding:
    most = int(await connection.fetchval("SHOW max_connections"))
    used = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    todo = "raise max_connections, or look who holds them: pg_stat_activity" if used > 0.9 * most else ""
    return Finding("connections", f"{used} of {most} in use", todo)


async def _extension(connection: asyncpg.Connection) -> Finding:
    version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    if version is None:
        return Finding("storage", "plain PostgreSQL: samples are partitions of a day, not compressed")
    edition = await connection.fetchval("SELECT current_setting('timescaledb.license', true)")
    old = "not compressed" if await compression.unavailable(connection) else "the old ones compressed"
    return Finding("storage", f"TimescaleDB {version} ({edition}): samples are chunks of a day, {old}")


async def _rollups(connection: asyncpg.Connection) -> Finding:
    if await connection.fetchval("SELECT to_regclass('dirty_ranges')") is None:
        return Finding("rollups", "there are none yet", "run: cncmon db upgrade")
    waiting = await rollups.waiting(connection)
    says = f"{waiting.marks:,} ranges wait to be computed"
    if waiting.aside:
        return Finding("rollups", f"{says}, {waiting.aside:,} can't be: {waiting.failure}",
                       "mend that, then run: cncmon db recompute --failed")  # fmt: skip
    return Finding("rollups", says)


async def _locks(connection: asyncpg.Connection) -> Finding:
    """A statement over all time locks each part and its index, out of what all sessions share."""
    row = await connection.fetchrow(
        "SELECT current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int AS locks, "
        "(SELECT 2 * count(*) FROM pg_inherits) AS needed"
    )
    locks, needed = row or (0, 0)
    todo = (
        f"raise max_locks_per_transaction: all parts of all tables take {needed:,} locks" if needed > locks / 2 else ""
    )
    return Finding("locks", f"room for {locks:,}", todo)


async def recompute(data: Path | None, *, dsn: str | None, since_s: float | None, failed: bool, as_json: bool) -> int:
    """Mark rollups and states as out of date, have them computed, and return the exit status.

    Whoever maintains the database computes them; where nobody does, this process.
    """
    logs.setup("cncmon", "warning")
    async with connected(data, dsn, command_timeout_s=None) as connection:
        again = await connection.execute("UPDATE dirty_ranges SET failure = NULL WHERE failure IS NOT NULL")
        marks = int(again.split()[-1])
        if not failed:
            now = datetime.now(UTC)
            since = now - timedelta(seconds=since_s) if since_s else datetime(1970, 1, 1, tzinfo=UTC)
            marks += await dirty.mark_hours(connection, since, now + timedelta(days=1))
        alone = await connection.fetchval("SELECT pg_try_advisory_lock($1)", maintenance.LOCK_KEY)
        computing = rollups.Rollups(timedelta(milliseconds=IngestSettings("-").stale_after_ms))
        left = marks
        with console.bar("Computing", marks) as advance:
            while (waiting := await rollups.waiting(connection)).marks:
                # Others may come meanwhile.
                advance(left - min(left, waiting.marks))
                left = min(left, waiting.marks)
                if alone:
                    await computing.catch_up(connection)
                else:
                    await asyncio.sleep(0.5)
    if as_json:
        print(msgspec.json.encode({"marked": marks, "failed": waiting.aside}).decode())
    elif waiting.aside:
        console.for_people().print(f"{waiting.aside:,} ranges can't be computed: {escape(str(waiting.failure))}")
    else:
        console.for_people().print(f"{marks:,} hours of machines were computed again.")
    return 1 if waiting.aside else 0


async def upgrade(data: Path | None, *, dsn: str | None, as_json: bool) -> None:
    """Bring the tables to this program's version, and print what was done.

    Raises:
        StandaloneError: that can't be done.
    """
    # What is done is told once, below.
    logs.setup("cncmon", "warning")
    async with connected(data, dsn, command_timeout_s=None) as connection:
        before = await migrate.version(connection)
        try:
            applied = await migrate.migrate(connection)
        except (MigrationError, OutageError) as error:
            raise StandaloneError(str(error)) from error
    if as_json:
        print(msgspec.json.encode({"before": before, "applied": applied, "now": migrate.LATEST}).decode())
    elif applied:
        console.for_people().print(f"Tables brought from version {before} to {migrate.LATEST}.")
    else:
        console.for_people().print(f"Tables are of version {migrate.LATEST} already.")
