"""The poll log: one JSON line for every poll that a simulated machine answered, written before the answer leaves.

A line is `{"machine_id", "counter", "t_ns", "values": {...}}` and, where a fault touched the answer, `"fault"`:

* `counter`: the value of the register `poll_counter` in the answer; +1 each poll of that machine.
* `t_ns`: wall clock in nanoseconds since 1970 when the values were taken.
* `values`: every signal of the profile by name, as a correct reader must get it: the float nearest to raw * scale, plus
  offset (raw itself for scale 1 and offset 0); words for enumerations, true or false for bits, null where the registers
  hold no usable value (NaN, infinity, an unknown state).
* `fault`: the names of the faults, joined by `+`, that kept the answer back, delayed it, or changed it.
"""

from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from cncmon_simulator.errors import PollLogError
from cncmon_simulator.register_map import Read

BUFFER_BYTES_MAX: Final = 1 << 20
"""The buffer is written out at this size, whatever the time; `FLUSH_S` comes first below some 10,000 polls a second."""

FLUSH_S: Final = 0.2


class Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One answered poll."""

    machine_id: str
    counter: int
    t_ns: int
    values: dict[str, Read]
    fault: str | None = None


class PollLog:
    """Appends records to a file, through a bounded buffer that its owner flushes every `FLUSH_S`."""

    def __init__(self, path: Path) -> None:
        """Open the file, empty.

        Raises:
            OSError: it can't be written.
        """
        self._file = FileIO(path, "w")
        self._buffer = bytearray()
        self._encode_into = msgspec.json.Encoder().encode_into

    def append(self, record: Record) -> None:
        """Add one record.

        Raises:
            OSError: the file can't be written, for example because the disk is full.
        """
        self._encode_into(record, self._buffer, -1)
        self._buffer += b"\n"
        if len(self._buffer) > BUFFER_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the operating system.

        Raises:
            OSError: the file can't be written.
        """
        left = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a log, in the order of the answers.

    A last line without its end, as a killed simulator leaves it, is left out.

    Raises:
        OSError: the file can't be read.
        PollLogError: another line is no record.
    """
    decode = msgspec.json.Decoder(Record).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except msgspec.MsgspecError as error:
                raise PollLogError(f"{path}:{number}: {error}") from error
