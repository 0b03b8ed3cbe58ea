"""The epochs file: which epochs this agent has begun, how far each is delivered, and which must still be closed.

An epoch is drawn and synced at every start before anything is published under it: after a power cut the stream may hold
batches that this disk has forgotten, and a number used again would clash with them (rule A1 of docs/delivery.md).
"""

import errno
import hashlib
import secrets
import threading
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cncmon_agent.durable_file import DurableFile
from cncmon_core.identity import EPOCH_MAX

FILE = "epochs.json"

DAMAGE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""What a disk says that can't read a file, or finds its checksum wrong."""

OPEN_MAX = 256
"""Earlier epochs whose closing is repeated. A loop of crashes without a cloud side must not fill the disk with them:
the oldest are given up, and the cloud side finds them abandoned.
"""


class Epoch(msgspec.Struct, omit_defaults=True):
    """One start of the agent; each `samples` counts those of the epoch up to the seq of the same name; 0: unknown.

    last: what is accepted and synced. acked: what the stream has taken without a hole, all of it at or under
    `acked_stream_seq` in the stream. freed: what the database has. forked: another agent publishes under it as well.
    doubted_from: the first seq that the database claimed to have before it was appended; 0: none.
    """

    epoch: Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
    last_seq: Annotated[int, Meta(ge=0)] = 0
    last_samples: Annotated[int, Meta(ge=0)] = 0
    acked_seq: Annotated[int, Meta(ge=0)] = 0
    acked_samples: Annotated[int, Meta(ge=0)] = 0
    acked_stream_seq: Annotated[int, Meta(ge=0)] = 0
    freed_seq: Annotated[int, Meta(ge=0)] = 0
    freed_samples: Annotated[int, Meta(ge=0)] = 0
    closed: bool = False
    forked: bool = False
    doubted_from: Annotated[int, Meta(ge=0)] = 0

    @property
    def counted(self) -> int | None:
        """Samples of the epoch up to `last_seq`, or None where that is not known any more."""
        return self.last_samples if self.last_samples or not self.last_seq else None


class EpochsFile(msgspec.Struct):
    """The file's content.

    open: earlier epochs that are not delivered to their end, or whose closing the database has not confirmed yet.
    stream_created: when the stream was made whose acknowledgements these are. site, edge: for people and exports.
    """

    current: Epoch
    open: list[Epoch] = []
    stream_created: str = ""
    site: str = ""
    edge: str = ""


class Epochs:
    """The current epoch and the earlier ones, kept on disk."""

    def __init__(self, folder: Path | None, site: str = "", edge: str = "") -> None:
        """Draw a new epoch and sync it to disk; without a folder it is kept in memory, and nobody closes it.

        Raises:
            OSError: the folder can't be written; nothing may be published then.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = DurableFile(folder / FILE) if folder is not None else None
        earlier = self._read()
        self.current = Epoch(draw_epoch())
        self._next: Epoch | None = None
        self.open = [*earlier.open, earlier.current][-OPEN_MAX:] if earlier else []
        self.stream_created = earlier.stream_created if earlier else ""
        self.unreadable = earlier is None and self._file is not None and self._file.path.exists()
        self._where = site, edge
        self._saved = b""
        self._writing = threading.Lock()
        self.save()

    def prepare(self) -> None:
        """Draw the epoch that is to follow the current one in this process; the next save writes it down."""
        if self._next is None:
            self._next = Epoch(draw_epoch())

    def begin(self) -> Epoch:
        """Begin the epoch that was prepared and saved, and return it; the one before only drains from now on."""
        if self._next is None:
            raise AssertionError("an epoch is prepared, and saved, before it begins")
        self.open = self._with_current()
        self.current, self._next = self._next, None
        return self.current

    def _with_current(self) -> list[Epoch]:
        return [*self.open, self.current][-OPEN_MAX:]

    def forget(self, epoch: int) -> None:
        """Forget an earlier epoch that is delivered, and whose closing is in the database."""
        self.open = [known for known in self.open if known.epoch != epoch]

    def note_end(self, epoch: int, seq: int) -> bool:
        """Write down that an earlier epoch goes up to a seq at least; whether it could. Blocks for the disk."""
        known = next((known for known in self.open if known.epoch == epoch), None)
        if known is None:
            known = Epoch(epoch)
            self.open.append(known)
        if seq > known.last_seq:
            known.last_seq, known.last_samples = seq, 0
        try:
            self.save()
        except OSError:
            return False
        return True

    def changes(self) -> bytes | None:
        """Return what is to be written, or None where nothing changed since it was."""
        current, earlier = self.current, self.open
        if self._next is not None:
            current, earlier = self._next, self._with_current()
        content = msgspec.json.encode(EpochsFile(current, earlier, self.stream_created, *self._where))
        return None if content == self._saved else content

    def write(self, content: bytes) -> None:
        """Replace the file; from any thread. One that a stop left behind may still be at it when the last one comes.

        Raises:
            OSError
        """
        with self._writing:
            if self._file is not None:
                self._file.write(content)
            self._saved = content

    def save(self) -> None:
        """Write the file where it changed. Blocks for the disk.

        Raises:
            OSError
        """
        if (content := self.changes()) is not None:
            self.write(content)

    def _read(self) -> EpochsFile | None:
        try:
            content = self._file.read() if self._file is not None else None
            return None if content is None else msgspec.json.decode(content, type=EpochsFile)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # A damaged file costs the closings of earlier epochs, which the cloud side then finds abandoned.
            return None
        except OSError as error:
            # A bad sector must not keep the edge from ever reading a machine again. Anything else may pass.
            if error.errno not in DAMAGE:
                raise
            return None


def draw_epoch() -> int:
    """Return a random epoch, 1 to EPOCH_MAX.

    From the kernel's generator, and the clocks: of a machine that was cloned a moment ago the generators of both may
    still give the same numbers.
    """
    clocks = f"{time.time_ns()} {time.monotonic_ns()} {time.perf_counter_ns()}".encode()
    drawn = hashlib.sha256(secrets.token_bytes(32) + clocks).digest()
    return int.from_bytes(drawn[:8]) % EPOCH_MAX + 1
