"""The export format `jsonl`: a header line, then one JSON object a batch, its frames as they are.

`frames`: the JSON objects, byte for byte. Where one frame of a batch is none, or has a line break in it, the batch has
`frames_base64` instead: all its frames, each in base64. Either way the payload, each frame behind its length, has the
SHA-256 of the identity.
"""

import base64
from typing import BinaryIO

import msgspec

from cncmon_agent.inspect.reading import Content

_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder().decode


class JsonLines:
    """Writes the format."""

    def __init__(self, file: BinaryIO, header: msgspec.Struct) -> None:
        self._file = file
        self._header = msgspec.to_builtins(header)
        self._site, self._edge = self._header["site"], self._header["edge"]
        file.write(_encode(header) + b"\n")

    def add(self, content: Content) -> None:
        """Write a batch."""
        identity = content.batch.identity
        line: dict[str, object] = {
            "site": self._site,
            "edge": self._edge,
            "epoch": identity.epoch,
            "seq": identity.seq,
            "base": identity.base,
            "kind": identity.kind,
            "sha256": identity.sha256,
            "created_ms": content.batch.created_ms,
        }
        if all(map(is_plain, content.parts)):
            line["frames"] = [msgspec.Raw(part) for part in content.parts]
        else:
            line["frames_base64"] = [base64.b64encode(part).decode() for part in content.parts]
        self._file.write(_encode(line) + b"\n")

    def finish(self) -> None:
        """Do nothing: every line is written."""


def is_plain(frame: bytes) -> bool:
    """Whether a frame is a JSON object that can stand in a line and be cut out of it again as it was."""
    if frame[:1] != b"{" or frame[-1:] != b"}" or b"\n" in frame or b"\r" in frame:
        return False
    try:
        _check(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
