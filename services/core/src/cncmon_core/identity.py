"""The identity of a batch as message headers: what makes a second delivery recognisable for ever."""

import hashlib
from collections.abc import Mapping
from typing import Final, Literal, get_args

import msgspec

from cncmon_core import names
from cncmon_core.errors import IdentityError

EPOCH: Final = "Cncmon-Epoch"
SEQ: Final = "Cncmon-Seq"
FRAMES: Final = "Cncmon-Frames"
BASE: Final = "Cncmon-Base"
SHA256: Final = "Cncmon-Sha256"
ENCODING: Final = "Cncmon-Encoding"
KIND: Final = "Cncmon-Kind"
MSG_ID: Final = "Nats-Msg-Id"
HEADERS: Final = frozenset({EPOCH, SEQ, FRAMES, BASE, SHA256, ENCODING, KIND, MSG_ID})
"""All that say what a batch is."""

EPOCH_MAX: Final = (1 << 63) - 1
Kind = Literal["samples", "events"]


class Identity(msgspec.Struct, frozen=True):
    """Who a batch is, and its witness.

    epoch: random 63-bit number drawn at each start of an agent. seq: 1, 2, 3 … within it. frames: how many the payload
    holds. base: samples of this epoch before this batch. sha256: hex digest of the uncompressed payload, so that
    recompressing changes nothing. kind: what the frames are.
    """

    epoch: int
    seq: int
    frames: int
    base: int
    sha256: str
    kind: Kind

    def to_headers(self, site: str, edge: str, encoding: str | None) -> dict[str, str]:
        """Return fresh message headers (nats-py adds its own to the dict it is given).

        The message id names the content, too: JetStream must not take a twin's batch for a second copy of ours.
        """
        headers = {
            MSG_ID: f"{site}.{edge}:{self.epoch}:{self.seq}:{self.sha256[:16]}",
            EPOCH: str(self.epoch),
            SEQ: str(self.seq),
            FRAMES: str(self.frames),
            BASE: str(self.base),
            SHA256: self.sha256,
            KIND: self.kind,
        }
        if encoding:
            headers[ENCODING] = encoding
        return headers

    def check_payload(self, payload: bytes) -> None:
        """Raise IdentityError unless `payload` (uncompressed) is what the digest was made of."""
        if digest(payload) != self.sha256:
            raise IdentityError("hash_mismatch", f"the payload's SHA-256 is not the {SHA256} header's")


def digest(payload: bytes) -> str:
    """Return the hex SHA-256 of an uncompressed payload."""
    return hashlib.sha256(payload).hexdigest()


def identity_of(headers: Mapping[str, str] | None) -> Identity | None:
    """Return the identity in a message's headers, or None for the original system's header-less form.

    Raises:
        IdentityError: some identity headers are there, but not a whole and sensible set.
    """
    if not headers or not (EPOCH in headers or SEQ in headers):
        return None
    kind = headers.get(KIND, "samples")
    if kind not in get_args(Kind):
        raise IdentityError("bad_identity", f"{KIND} is {kind!r}; known are {', '.join(get_args(Kind))}")
    sha256 = headers.get(SHA256, "")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise IdentityError("bad_identity", f"{SHA256} must be 64 lower-case hex digits")
    return Identity(
        epoch=_number(headers, EPOCH, 1),
        seq=_number(headers, SEQ, 1),
        frames=_number(headers, FRAMES, 1),
        base=_number(headers, BASE, 0),
        sha256=sha256,
        kind="events" if kind == "events" else "samples",
    )


def _number(headers: Mapping[str, str], name: str, least: int) -> int:
    text = headers.get(name, "")
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= EPOCH_MAX and len(text) < 20):
        raise IdentityError("bad_identity", f"{name} is {text[:40]!r}; expected a number from {least} to {EPOCH_MAX}")
    return int(text)


def subject_of(kind: Kind, site: str, edge: str) -> str:
    """Return the subject on which batches of a kind travel."""
    return names.events_subject(site, edge) if kind == "events" else names.samples_subject(site, edge)
