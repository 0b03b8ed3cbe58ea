"""Dead letters as rows (rules C1 and C4): single frames by their number, many of one message in one letter."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from cncmon_core import identity, logs, names
from cncmon_core.frames import FRAMES_MAX, join_numbered
from cncmon_ingest import metrics
from cncmon_ingest.decode import WHOLE_MESSAGE, DeadLetter, Decoded

log = logs.get(__name__)

FRAMES_APART_MAX: Final = 100
"""Dead frames of one message that are letters of their own; more are one letter."""

GROUP_FIRST: Final = -2
"""A letter with this number or a lower one holds several frames, the first of them number GROUP_FIRST - frame. Its
payload is `frames.join_numbered`.
"""

SEVERAL: Final = "several_reasons"

TOGETHER: Final = frozenset({"foreign_machine", "too_many_machines"})
"""Reasons whose frames are one letter each per message: what ends them ends them for all."""

DETAIL_CHARS_MAX: Final = 1000
HEADER_BYTES_MAX: Final = 16 << 10
"""Of a letter's headers as JSON. Those of the identity come first, what does not fit is left out."""

_INSERT = (
    "INSERT INTO dead_letters "
    "(identity, sha256, frame, frames, reason, detail, subject, stream_seq, headers, payload) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING"
)


EXPIRE_ROWS: Final = 1000
"""Deleted in one statement: some MiB of payloads at most, so that none holds locks for long."""

EXPIRE_ROWS_MAX: Final = 20_000
"""Deleted in one turn, after which the other steps of maintenance have theirs."""

# In one statement, so that a letter is either there or in the totals. Edges that no heartbeat names are one: subjects
# are senders' to choose, and totals are kept for ever.
_EXPIRE = """
WITH gone AS (
    DELETE FROM dead_letters WHERE id IN (
        SELECT id FROM dead_letters WHERE state = $1 AND created < now() - make_interval(days => $2)
        ORDER BY created LIMIT $3)
    RETURNING *
), named AS (
    SELECT g.*, coalesce(e.site, '') AS site, coalesce(e.edge, '') AS edge FROM gone g
    LEFT JOIN edges e ON (e.site, e.edge) = (split_part(g.subject, '.', 2), split_part(g.subject, '.', 3))
), entered AS (
    INSERT INTO dead_letter_totals AS t (reason, state, site, edge, letters, frames, bytes, first, last)
    SELECT reason, state, site, edge, count(*), sum(frames), sum(octet_length(payload)), min(created), max(created)
    FROM named GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (reason, state, site, edge) DO UPDATE SET
        letters = t.letters + excluded.letters, frames = t.frames + excluded.frames, bytes = t.bytes + excluded.bytes,
        first = least(t.first, excluded.first), last = greatest(t.last, excluded.last)
)
SELECT count(*) FROM gone
"""


class Letter(NamedTuple):
    """A dead letter as it is kept. frame: a number, WHOLE_MESSAGE, or of a group; frames: how many it stands for."""

    frame: int
    frames: int
    reason: str
    detail: str
    payload: bytes


def is_group(frame: int) -> bool:
    """Whether a letter holds several frames with their numbers."""
    return frame <= GROUP_FIRST


async def insert(connection: asyncpg.Connection, messages: Iterable[Decoded], stream_created: datetime) -> None:
    """Write the dead letters of messages, within the caller's transaction. stream_created: of those in no ledger."""
    rows = [row for message in messages if message.dead for row in _rows(message, stream_created)]
    if rows:
        await connection.executemany(_INSERT, rows)


async def expire(connection: asyncpg.Connection, days: int) -> int:
    """Delete letters that are older than their retention and add them to the totals; return how many.

    EXPIRE_ROWS_MAX or more: there may be others left.
    """
    expired = 0
    for state in ("dead", "replayed", "dropped"):
        number = EXPIRE_ROWS
        while number == EXPIRE_ROWS and expired < EXPIRE_ROWS_MAX:
            number = await connection.fetchval(_EXPIRE, state, days, EXPIRE_ROWS)
            metrics.DEAD_EXPIRED.labels(state).inc(number)
            expired += number
    if expired:
        log.info("dead letters are past their retention", letters=expired, days=days)
    return expired


def letters_of(message: Decoded) -> list[Letter]:
    """Return a message's dead frames as letters: at most FRAMES_APART_MAX and one of each reason in TOGETHER."""
    if message.whole_dead:
        return [
            Letter(letter.frame, frames_of_whole(message), letter.reason, letter.detail, letter.payload)
            for letter in message.dead
            if letter.frame == WHOLE_MESSAGE
        ]
    letters = [
        group([letter for letter in message.dead if letter.reason == reason])
        for reason in sorted(TOGETHER & {letter.reason for letter in message.dead})
    ]
    others = sorted((one for one in message.dead if one.reason not in TOGETHER), key=lambda one: one.frame)
    if len(others) > FRAMES_APART_MAX:
        letters.append(group(others[:FRAMES_MAX]))
        # What follows the last frame of the largest message, and is none.
        others = others[FRAMES_MAX:]
    return letters + [Letter(one.frame, 1, one.reason, one.detail, one.payload) for one in others]


def frames_of_whole(message: Decoded) -> int:
    """Return how many samples a message that is dead as a whole stands for, as its headers say; 1 without them."""
    return min(message.identity.frames, FRAMES_MAX) if message.identity else 1


def group(dead: Sequence[DeadLetter]) -> Letter:
    """Return frames of one message as one letter, whose reason is theirs where they share one."""
    ordered = sorted(dead, key=lambda letter: letter.frame)
    reason, detail = reasons_of(ordered)
    payload = join_numbered((letter.frame, letter.payload) for letter in ordered)
    return Letter(GROUP_FIRST - ordered[0].frame, len(ordered), reason, detail, payload)


def reasons_of(dead: Sequence[DeadLetter]) -> tuple[str, str]:
    """Return one reason and detail for several frames; the detail counts the reasons and shows the first of each."""
    counted = Counter(letter.reason for letter in dead)
    firsts = {letter.reason: letter for letter in reversed(dead)}
    detail = "; ".join(
        f"{number} {reason}, the first frame {firsts[reason].frame}: {firsts[reason].detail[:100]}"
        for reason, number in counted.most_common()
    )
    return next(iter(counted)) if len(counted) == 1 else SEVERAL, detail


def _rows(message: Decoded, stream_created: datetime) -> list[tuple[Any, ...]]:
    incoming = message.incoming
    if message.identity:
        name = f"{message.identity.epoch}:{message.identity.seq}"
    else:
        name = f"{names.STREAM}:{stream_created.isoformat()}:{incoming.stream_seq}:{incoming.stored_at.isoformat()}"
    headers = storable_headers(incoming.headers)
    subject = storable_text(incoming.subject)
    return [
        (
            *(name, message.sha256, letter.frame, letter.frames, letter.reason, detail_of(letter.detail)),
            *(subject, incoming.stream_seq, headers, letter.payload),
        )
        for letter in letters_of(message)
    ]


def detail_of(text: str) -> str:
    """Return a detail as it is kept."""
    return storable_text(text[:DETAIL_CHARS_MAX])


def storable_text(text: str) -> str:
    """Return text that PostgreSQL takes: without U+0000 and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def storable_headers(headers: Any) -> str:
    """Return headers as JSON that PostgreSQL takes, of at most HEADER_BYTES_MAX: those that a replay reads first."""
    kept: dict[str, str] = {}
    room = HEADER_BYTES_MAX
    for name in sorted(headers, key=lambda name: name not in identity.HEADERS):
        plain, value = storable_text(name), storable_text(headers[name])
        room -= len(msgspec.json.encode({plain: value}))
        if room < 0:
            break
        kept[plain] = value
    return msgspec.json.encode(kept).decode()
