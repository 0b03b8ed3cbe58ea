"""The export format `parquet`: one row a frame, with the batch's identity, the frame as it is, and a sample's fields.

The rows of a batch are in order and together (`frame` counts from 0), so that its payload can be made again. The fields
are for people who look into the file; of a frame that can't be decoded they are null. The header of the other format is
in the file's metadata, under `cncmon`.
"""

from typing import Any, BinaryIO, Final

import msgspec

from cncmon_agent.inspect.errors import InspectError
from cncmon_agent.inspect.reading import Content
from cncmon_core.errors import FrameError
from cncmon_core.events import decode_event
from cncmon_core.sample import FIELDS, decode_sample

ROWS_MAX: Final = 20_000
"""Rows of a row group: some 10 MB in memory."""
INSTALL: Final = "the parquet format needs the library pyarrow: pip install 'cncmon-agent[parquet]'"

WHOLE: Final = ("active_program_line", "part_count", "tool_number")
TEXTS: Final = ("machine_id", "machine_state", "mode", "program")
SHOWN: Final = tuple(field for field in FIELDS if field != "extras")


class Parquet:
    """Writes the format."""

    def __init__(self, file: BinaryIO, header: msgspec.Struct) -> None:
        """Raises InspectError: the library is not installed."""
        try:
            import pyarrow  # type: ignore[import-untyped]  # it ships no types
            from pyarrow import parquet
        except ImportError as error:
            raise InspectError(INSTALL) from error
        self._arrow = pyarrow
        said = msgspec.to_builtins(header)
        self._whose = said["site"], said["edge"]
        self._schema = _schema(pyarrow).with_metadata({"cncmon": msgspec.json.encode(header)})
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []

    def add(self, content: Content) -> None:
        """Write a batch."""
        identity = content.batch.identity
        name = (identity.epoch, identity.seq, identity.base, identity.kind, identity.sha256, content.batch.created_ms)
        self._rows += [
            (*self._whose, *name, number, frame, *_fields(frame, identity.kind))
            for number, frame in enumerate(content.parts)
        ]
        if len(self._rows) >= ROWS_MAX:
            self._flush()

    def finish(self) -> None:
        """Write the rows that are left, and the file's footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(self._schema)
        arrays = [self._arrow.array(list(c), f.type) for c, f in zip(columns, self._schema, strict=True)]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()


def _schema(arrow: Any) -> Any:
    whole, text = arrow.int64(), arrow.string()
    types = {"timestamp": arrow.timestamp("us", "UTC")} | dict.fromkeys(WHOLE, whole) | dict.fromkeys(TEXTS, text)
    return arrow.schema(
        [
            ("site", text),
            ("edge", text),
            ("epoch", whole),
            ("seq", whole),
            ("base", whole),
            ("kind", text),
            ("sha256", text),
            ("created", arrow.timestamp("ms", "UTC")),
            ("frame", arrow.int32()),
            ("raw", arrow.binary()),
            *((field, types.get(field, arrow.float64())) for field in SHOWN),
        ]
    )


def _fields(frame: bytes, kind: str) -> tuple[Any, ...]:
    try:
        if kind == "events":
            event = decode_event(frame)
            known = {"machine_id": event.machine_id, "timestamp": event.timestamp}
            return tuple(known.get(field) for field in SHOWN)
        sample = decode_sample(frame)
    except FrameError:
        return (None,) * len(SHOWN)
    return tuple(getattr(sample, field) for field in SHOWN)
