"""Batches with gaps between them: what tests of rules B4, B5 and D4 feed to ingest and look at afterwards."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg

from cncmon_core import identity
from cncmon_core.events import GAP, Event, encode_event
from cncmon_core.frames import join
from cncmon_core.identity import Identity, Kind
from cncmon_ingest.decode import Decoded, Incoming, Limits, decode
from testkit.ingest import EPOCH, frame

OTHER = 777
"""The epoch in which declarations travel."""


def batch(seq: int, samples: int = 1, *, epoch: int = EPOCH, base: int | None = None, edge: str = "e1") -> Decoded:
    """A batch of samples as ingest decodes it; by default every batch of the epoch holds as many."""
    now = datetime.now(UTC).isoformat()
    parts = [frame(1000 * seq + number, timestamp=now) for number in range(samples)]
    return message(seq, parts, epoch=epoch, base=(seq - 1) * samples if base is None else base, edge=edge)


def message(
    seq: int,
    parts: list[bytes],
    *,
    epoch: int = EPOCH,
    base: int = 0,
    kind: Kind = "samples",
    edge: str = "e1",
    stored_at: datetime | None = None,
) -> Decoded:
    """Any message as ingest decodes it."""
    payload = join(parts)
    headers = Identity(epoch, seq, len(parts), base, identity.digest(payload), kind).to_headers("hall", edge, None)
    subject = identity.subject_of(kind, "hall", edge)
    now = datetime.now(UTC)
    return decode(Incoming(subject, headers, payload, seq, stored_at or now), Limits.at(now, 300, 0))


def gap_frame(low: int, high: int, samples: int | None = None, *, epoch: int = EPOCH, **more: Any) -> bytes:
    """A declaration, as an agent writes it."""
    data = {"epoch": epoch, "seq_from": low, "seq_to": high, "samples": samples, "reason": "disk_cap"} | more
    return encode_event(Event(GAP, datetime.now(UTC), data=data))


def declaration(seq: int, *declarations: bytes, epoch: int = OTHER) -> Decoded:
    """A message of declarations."""
    return message(seq, list(declarations), epoch=epoch, kind="events")


async def gaps_of(database: asyncpg.Connection, epoch: int = EPOCH) -> list[tuple[int, int, int | None]]:
    """Return (from, to, samples) of an epoch's gaps."""
    rows = await database.fetch("SELECT seq_from, seq_to, samples FROM gaps WHERE epoch = $1 ORDER BY seq_from", epoch)
    return [tuple(row) for row in rows]


async def ledger_of(database: asyncpg.Connection, epoch: int = EPOCH) -> list[int]:
    """Return the seqs of an epoch that the ledger holds."""
    return [row["seq"] for row in await database.fetch("SELECT seq FROM ledger WHERE epoch = $1 ORDER BY 1", epoch)]


async def watermark_of(database: asyncpg.Connection, epoch: int = EPOCH) -> int | None:
    """Return an epoch's watermark, None where it has no row."""
    seq: int | None = await database.fetchval("SELECT seq FROM watermarks WHERE epoch = $1", epoch)
    return seq


def new_seqs(messages: Iterable[Decoded]) -> list[int]:
    """Return the seqs of messages."""
    return sorted(item.identity.seq for item in messages if item.identity)
