"""Which database may lead when the stream's samples went into another one: only that which somebody adopted (rule D3).

Both facts are durable in the database that they are about: that its leader was refused, and that it was adopted.
"""

from typing import NamedTuple

import asyncpg

from cncmon_ingest.database_identity import DatabaseIdentity, identity_of

_STATE = "SELECT to_jsonb(d) ->> 'refused', to_jsonb(d) ->> 'adopted' FROM delivery d"


class Adoption(NamedTuple):
    """refused: why the database does not lead. adopted: the identity that was adopted (`DatabaseIdentity.server`)."""

    refused: str | None = None
    adopted: str | None = None


async def adoption(connection: asyncpg.Connection) -> Adoption:
    """Return what a database says of itself; of a schema of before this rule nothing.

    Raises:
        asyncpg.PostgresError
    """
    row = await connection.fetchrow(_STATE)
    return Adoption(*row) if row else Adoption()


async def adopt(connection: asyncpg.Connection) -> DatabaseIdentity:
    """Let this database lead from now on, whatever database the stream's samples went into; return its identity.

    The next leader on it begins a new generation. A copy of the database is not adopted by that: it is another one.

    Raises:
        asyncpg.PostgresError
        NotConnectedError: a backup is being restored into it.
    """
    identity = await identity_of(connection)
    await connection.execute("UPDATE delivery SET adopted = $1", identity.server)
    return identity


async def refuse(connection: asyncpg.Connection, why: str) -> None:
    """Write down that this database does not lead.

    Raises:
        asyncpg.PostgresError
    """
    await connection.execute("UPDATE delivery SET refused = $1 WHERE refused IS DISTINCT FROM $1", why)


async def leads(connection: asyncpg.Connection) -> None:
    """Write down that this database leads: an adoption is used up by that.

    Raises:
        asyncpg.PostgresError
    """
    await connection.execute(
        "UPDATE delivery SET refused = NULL, adopted = NULL WHERE refused IS NOT NULL OR adopted IS NOT NULL"
    )
