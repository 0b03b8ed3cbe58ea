"""Reading an agent's export (`cncmon-agent buffer export`): batches with their identities and original frames.

jsonl: a header line, then one JSON object a batch, its frames byte for byte in `frames`, or in `frames_base64`.
parquet: one row a frame (`raw`), those of a batch together and in order. What is damaged is named and passed over; a
batch whose frames don't have its SHA-256 is never stored and never a dead letter: that would take its place in the
ledger.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Meta

from cncmon_core import frames, names
from cncmon_core.errors import IdentityError
from cncmon_core.events import SEQ_MAX, Epoch
from cncmon_core.identity import Identity, Kind
from cncmon_ingest.errors import ExportError

VERSION: Final = 1
LINE_BYTES_MAX: Final = 64 << 20
"""A batch has at most 16 MiB of frames; in base64 and JSON that is less than twice as much."""

INSTALL: Final = "to read parquet, the library pyarrow is needed: pip install 'cncmon-ingest[parquet]'"
_PARQUET_MAGIC: Final = b"PAR1"
_COLUMNS: Final = ("site", "edge", "epoch", "seq", "base", "kind", "sha256", "created", "raw")
_ROWS_AT_ONCE: Final = 1000


class Exported(NamedTuple):
    """A batch as the edge had it; payload: its frames behind their lengths, as they were hashed."""

    place: str
    site: str
    edge: str
    identity: Identity
    created: datetime
    payload: bytes


class Damaged(NamedTuple):
    """What can't be used, and where it is."""

    place: str
    problem: str


class _Batch(msgspec.Struct):
    site: str
    edge: str
    epoch: Epoch
    seq: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    base: Annotated[int, Meta(ge=0, le=SEQ_MAX)]
    kind: Kind
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created_ms: Annotated[int, Meta(ge=0, le=10**13)]
    frames: list[msgspec.Raw] | None = None
    frames_base64: list[str] | None = None


class _Header(msgspec.Struct):
    cncmon_export: int


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_header = msgspec.json.Decoder(_Header).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read(path: Path) -> Iterator[Exported | Damaged]:
    """Iterate over the batches of a file, in its order.

    Raises:
        ExportError: nothing of the file can be used: it can't be read, is none, or is of a newer version.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
                yield from _batches_of_rows(_parquet_rows(path))
            else:
                file.seek(0)
                yield from _jsonl(file)
    except OSError as error:
        raise ExportError(f"{path} can't be read: {error.strerror or error}") from error


def _jsonl(file: BinaryIO) -> Iterator[Exported | Damaged]:
    for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), 1):
        place = f"line {number}"
        if not line.endswith(b"\n") and len(line) == LINE_BYTES_MAX:
            while (rest := file.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
                pass
            yield Damaged(place, f"longer than {LINE_BYTES_MAX} bytes")
        elif number == 1 and _is_header(line):
            continue
        elif line.strip():
            yield _of_line(place, line)


def _is_header(line: bytes) -> bool:
    try:
        header = _decode_header(line)
    except _UNREADABLE:
        return False
    if header.cncmon_export != VERSION:
        raise ExportError(f"the export is of version {header.cncmon_export}; this program reads version {VERSION}")
    return True


def _of_line(place: str, line: bytes) -> Exported | Damaged:
    try:
        batch = _decode_batch(line)
        if (batch.frames is None) == (batch.frames_base64 is None):
            return Damaged(place, "needs either frames or frames_base64")
        if batch.frames is not None:
            parts = [bytes(raw) for raw in batch.frames]
        else:
            parts = [base64.b64decode(text, validate=True) for text in batch.frames_base64 or ()]
    except (*_UNREADABLE, binascii.Error) as error:
        return Damaged(place, str(error))
    return _checked(place, batch, parts)


def _checked(place: str, batch: _Batch, parts: list[bytes]) -> Exported | Damaged:
    if not batch.site or names.origin_of(names.samples_subject(batch.site, batch.edge)) != (batch.site, batch.edge):
        return Damaged(place, f"site {batch.site[:70]!r} and edge {batch.edge[:70]!r} can't name an edge")
    if not 0 < len(parts) <= frames.FRAMES_MAX:
        return Damaged(place, f"{len(parts)} frames; a batch has 1 to {frames.FRAMES_MAX}")
    payload = frames.join(parts)
    identity = Identity(batch.epoch, batch.seq, len(parts), batch.base, batch.sha256, batch.kind)
    try:
        identity.check_payload(payload)
    except IdentityError:
        return Damaged(place, f"epoch {batch.epoch}, seq {batch.seq}: its frames don't have its SHA-256")
    created = datetime.fromtimestamp(batch.created_ms / 1000, UTC)
    return Exported(place, batch.site, batch.edge, identity, created, payload)


def _batches_of_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Exported | Damaged]:
    """Put the rows of a batch together again."""
    numbered = enumerate(rows, 1)
    for _, group in groupby(numbered, key=lambda item: itemgetter("epoch", "seq")(item[1])):
        members = list(group)
        place = f"row {members[0][0]}"
        first = members[0][1]
        created = first["created"]
        fields = {name: first[name] for name in _COLUMNS if name not in ("created", "raw")}
        fields["created_ms"] = int(created.timestamp() * 1000) if isinstance(created, datetime) else None
        try:
            batch = msgspec.convert(fields, _Batch)
        except msgspec.ValidationError as error:
            yield Damaged(place, str(error))
            continue
        yield _checked(place, batch, [row["raw"] or b"" for _, row in members])


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]  # ships no types
        from pyarrow import parquet  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ExportError(INSTALL) from error
    try:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
                yield from part.to_pylist()
    except pyarrow.ArrowException as error:
        raise ExportError(f"{path} is damaged: {error}. What came before that is imported") from error
