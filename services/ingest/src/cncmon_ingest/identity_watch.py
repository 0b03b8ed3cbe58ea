"""What a worker knows of the database: it commits to no other and acknowledges nothing for an earlier one (rule D3)."""

import contextlib
import time
from typing import Final

import asyncpg
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from cncmon_core import names
from cncmon_ingest.database_identity import (
    NOTHING_KNOWN,
    DatabaseIdentity,
    Moment,
    behind,
    check_moment,
    decode_identity,
    foreign,
    identity_of,
    moment_of,
)
from cncmon_ingest.errors import DATABASE_ERRORS, ForeignError, NotConnectedError, OutageError, translate
from cncmon_ingest.identity_mirror import read_mirror

LOOK_S: Final = 5.0
"""The mirror is read again so often: what tells of a change may be lost."""


class IdentityWatch:
    """The mirror as a worker has it: pushed to it, and read again every LOOK_S. adopts: see `IngestSettings`."""

    def __init__(self, client: Client, *, adopts: bool = False) -> None:
        self._client = client
        self._adopts = adopts
        self._bucket: KeyValue | None = None
        self._looked_s = 0.0
        self.mirror: DatabaseIdentity | None = None

    async def open(self) -> None:
        """Begin to listen."""
        subject = f"cncmon.kv.{names.KV_WATERMARK}.{names.KV_DATABASE_KEY}"
        await self._client.subscribe(subject, cb=self._on_change)
        self._bucket = await self._client.jetstream().key_value(names.KV_WATERMARK)
        await self.look()

    async def _on_change(self, message: Msg) -> None:
        # What is malformed the leader replaces.
        with contextlib.suppress(ValueError):
            self.mirror = decode_identity(message.data)

    async def look(self) -> None:
        """Read the mirror now."""
        if self._bucket is None:
            raise AssertionError("it was opened")
        self._looked_s = time.monotonic()
        self.mirror = (await read_mirror(self._bucket)).identity

    def known(self) -> Moment:
        """Return how far the database is at least: to be taken before it is asked."""
        return self.mirror.moment if self.mirror else NOTHING_KNOWN

    async def admit(self, connection: asyncpg.Connection) -> DatabaseIdentity:
        """Return the identity of the database at a new connection.

        Raises:
            NotConnectedError: it regressed or is another one; the leader has to begin a new generation first.
            OutageError: it can't be asked.
        """
        await self._look_if_due(0.0)
        mirror = self.mirror
        try:
            identity = await identity_of(connection)
            if mirror and not self._adopts and (why := await foreign(connection, identity, mirror)):
                raise ForeignError(why)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        if (why := behind(identity, mirror)) or (mirror and identity.generation != mirror.generation):
            raise NotConnectedError(f"the database regressed: {why or 'its new generation is not announced yet'}")
        return identity

    async def confirm(self, connection: asyncpg.Connection, identity: DatabaseIdentity) -> None:
        """Make sure that what was committed through this connection since it was admitted still counts.

        Raises:
            NotConnectedError: it may not be in the database any more.
            OutageError: it can't be asked.
        """
        known = max(self.known(), identity.moment)
        try:
            found, _ = await moment_of(connection)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        check_moment(found, known)
        await self.may_acknowledge(identity)

    async def may_acknowledge(self, identity: DatabaseIdentity) -> None:
        """Return where what was committed in this generation still counts.

        Raises:
            NotConnectedError: another generation has begun: it may lack what was committed here.
        """
        await self._look_if_due(LOOK_S)
        mirror = self.mirror
        if mirror and (mirror.generation, mirror.server) != (identity.generation, identity.server):
            raise NotConnectedError(
                f"generation {mirror.generation} of the database has begun, this connection is to {identity.generation}"
            )

    async def _look_if_due(self, every_s: float) -> None:
        if time.monotonic() - self._looked_s < every_s:
            return
        try:
            await self.look()
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise OutageError(
                f"NATS does not say which generation counts: {str(error) or type(error).__name__}"
            ) from error
