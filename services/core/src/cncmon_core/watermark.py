"""The watermark document: what the database has, told to each edge through KV `edge_watermark`."""

import msgspec


class Watermark(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What ingest's leader says to one edge.

    generation: which life of the database (a restore begins a new one); a lower seq of the same one is stale news.
    stream_created: when the stream was made, RFC 3339; a new value means everything before it is gone.
    committed_floor: stream sequence up to which every message is committed and acknowledged.
    epochs: epoch → seq up to which everything is in the database. JSON keys are strings. An epoch that isn't listed is
    unknown, not zero.
    forked: epochs of this edge under which two agents publish (rule A1).
    bytes_max: share of the edge in what the stream holds uncommitted (rule D2); 0: none.
    """

    generation: int
    stream_created: str
    committed_floor: int
    epochs: dict[int, int]
    forked: list[int] = []
    bytes_max: int = 0


encode_watermark = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Watermark).decode


def decode_watermark(data: bytes) -> Watermark:
    """Return the document.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    try:
        return _decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"not UTF-8, or nested too deep: {error}") from error
