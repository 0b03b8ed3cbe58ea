"""The mirror of the database's identity in KV, as it is read and written."""

from typing import NamedTuple

import msgspec
from nats.js.errors import BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from cncmon_core import names
from cncmon_ingest.database_identity import DatabaseIdentity, decode_identity


class Mirror(NamedTuple):
    """revision: of the key, 0 where there is none. problem: why it is malformed; identity is None then."""

    revision: int = 0
    identity: DatabaseIdentity | None = None
    problem: str | None = None


async def read_mirror(bucket: KeyValue) -> Mirror:
    """Return what KV says."""
    try:
        entry = await bucket.get(names.KV_DATABASE_KEY)
    except KeyNotFoundError as error:
        # A deleted key leaves a marker, whose revision the next write must name.
        return Mirror((error.entry.revision or 0) if error.entry else 0)
    try:
        return Mirror(entry.revision or 0, decode_identity(entry.value or b""))
    except ValueError as error:
        return Mirror(entry.revision or 0, None, f"{error}: {str(entry.value)[:80]}")


async def write_mirror(bucket: KeyValue, revision: int, identity: DatabaseIdentity) -> Mirror | None:
    """Write by compare-and-set against a revision; return the new mirror, or None: another one was written since."""
    try:
        written = await bucket.update(names.KV_DATABASE_KEY, msgspec.json.encode(identity), last=revision)
    except (KeyWrongLastSequenceError, BadRequestError):
        return None
    return Mirror(written, identity)
