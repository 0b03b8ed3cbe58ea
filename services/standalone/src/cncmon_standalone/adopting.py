"""`cncmon db adopt`: a database leads from now on, and whether it does."""

from pathlib import Path

import asyncpg
import msgspec
from rich.markup import escape

from cncmon_ingest import migrate
from cncmon_ingest.adoption import Adoption, adopt, adoption
from cncmon_ingest.errors import OutageError
from cncmon_standalone import console
from cncmon_standalone.database import connected
from cncmon_standalone.errors import StandaloneError

ADVICE = "if it is to lead from now on, run: cncmon db adopt"


async def run(data: Path | None, *, dsn: str | None, as_json: bool) -> None:
    """Adopt a database, and print which one.

    Raises:
        StandaloneError: that can't be done.
    """
    async with connected(data, dsn) as connection:
        if (problem := (await migrate.schema(connection)).problem()) is not None:
            raise StandaloneError(problem)
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise StandaloneError("the server is a replica: adopt the primary's database")
        refused = (await adoption(connection)).refused
        try:
            identity = await adopt(connection)
        except OutageError as error:
            raise StandaloneError(str(error)) from error
    if as_json:
        print(msgspec.json.encode({"adopted": identity.server, "refused": refused}).decode())
        return
    out = console.for_people()
    out.print(f"Database {escape(identity.database)} ({identity.server}) is adopted.", soft_wrap=True)
    if refused:
        out.print(f"It was refused until now: {escape(refused)}", soft_wrap=True)
    out.print(
        "Ingest on it begins a new generation within seconds and reads the stream again: cncmon reconcile says when "
        "all is there. Ingest on any other database of this stream stores nothing from then on.",
        soft_wrap=True,
    )


async def state(connection: asyncpg.Connection) -> Adoption:
    """Return whether a database leads; of one without our tables nothing."""
    if await connection.fetchval("SELECT to_regclass('delivery')") is None:
        return Adoption()
    return await adoption(connection)
