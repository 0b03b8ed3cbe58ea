"""Pages of samples: keyset pagination over a table that has no unique key.

A cursor says at which time the next page begins and how many samples of exactly that time were given already. Within
one time the order is by every other column, so it is the same for every page; rows that are alike in all columns are
interchangeable. Rows stored later at an earlier time than the cursor's are not seen by that walk, as with any keyset;
rows stored later at exactly the cursor's time matter only where a page ended within that time.
"""

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cncmon_api.database import Database
from cncmon_api.errors import BadRequestError
from cncmon_api.models import SamplePage
from cncmon_api.params import EPOCH, YEAR_MAX
from cncmon_api.rows import COLUMNS, SELECTED, sample_of

LIMIT_MAX: Final = 10_000
LIMIT_DEFAULT: Final = 1_000
_CURSOR_CHARS_MAX: Final = 200
_MICROSECOND: Final = timedelta(microseconds=1)

_TEXTS: Final = ("machine_state", "mode", "program")
_TIEBREAK: Final = ", ".join(f'{name} COLLATE "C"' if name in _TEXTS else name for name in COLUMNS[2:])

# The index gives rows by time; PostgreSQL's incremental sort then compares the other columns only within one time.
_SQL: Final = f"""
SELECT {SELECTED}
FROM sensor_data
WHERE machine_id = $1 AND time >= $2 AND time < $3
ORDER BY time, {_TIEBREAK}
LIMIT $4 OFFSET $5
"""  # noqa: S608 only constants

_Micros = Annotated[int, Meta(ge=0, le=int((YEAR_MAX - 1970) * 366 * 86_400e6))]


class Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Where a walk stands, in µs since 1970: `given` samples of time `at_us` are behind it; it ends at `to_us`."""

    at_us: _Micros
    given: Annotated[int, Meta(ge=0, le=100_000_000)]
    to_us: _Micros


def encode_cursor(cursor: Cursor) -> str:
    """Return the opaque text that a caller hands back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def decode_cursor(text: str) -> Cursor:
    """Return the cursor of a text.

    Raises:
        BadRequestError: it is none of ours.
    """
    try:
        if len(text) > _CURSOR_CHARS_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=Cursor)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequestError(
            "cursor is not one of this API: pass next_cursor of the page before, unchanged, or leave it out."
        ) from error


async def read_page(
    database: Database, machine_id: str, begin: datetime, end: datetime, limit: int, cursor: Cursor | None
) -> SamplePage:
    """Return up to `limit` samples of a machine in [begin, end), ascending, or what follows the cursor.

    Raises:
        UnavailableError: the database can't answer.
    """
    given = 0
    if cursor is not None:
        begin, end, given = _time(cursor.at_us), _time(cursor.to_us), cursor.given
    rows = await database.fetch(_SQL, machine_id, begin, end, limit + 1, given)
    samples = [sample_of(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return SamplePage(samples, None)
    at = rows[limit]["time"]
    same = sum(1 for sample in samples if sample.timestamp == at)
    # A page that holds nothing but this time goes on counting where the page before stopped.
    before = given if at == begin else 0
    return SamplePage(samples, encode_cursor(Cursor(_micros(at), same + before, _micros(end))))


def _time(micros: int) -> datetime:
    return EPOCH + micros * _MICROSECOND


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // _MICROSECOND


def end_of(cursor: Cursor) -> datetime:
    """Return the end of the range that the cursor walks."""
    return _time(cursor.to_us)
