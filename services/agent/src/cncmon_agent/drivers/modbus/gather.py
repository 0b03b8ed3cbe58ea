"""Values of a whole poll at once: what `values` does signal by signal, for polls in which nothing is amiss.

Each block's answer is gathered by one `bytes.translate` (the map from place to byte is the text, the answer is the
table), which turns word orders, leaves gaps out and doubles registers that several signals share; then one `struct`
unpacks it. Only what is left to do is done in Python. Whatever is unusual (NaN, a number that the enumeration does not
have) makes it give up, and `values`, which knows what to say of each signal, is asked.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from operator import itemgetter
from struct import Struct
from typing import Any, Final

from cncmon_agent.drivers.modbus.plan import BIT_TABLES, Block
from cncmon_agent.drivers.modbus.values import FORMATS, digits_of, divisor_of, float32, text_of
from cncmon_core.machine import Signal

_TABLE_BYTES: Final = 256
"""`bytes.translate` wants a table of this size; an answer has at most 250 bytes of data."""

Convert = Callable[[Any], Any]


class Gather:
    """Decodes the answers to these blocks, in this order."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        signals = [(block, signal) for block in blocks for signal in block.signals]
        self._parts = [_part(block) for block in blocks]
        self._names = tuple(signal.name for _, signal in signals)
        converts = [(at, _convert(block, signal)) for at, (block, signal) in enumerate(signals)]
        self._converts = [(at, convert) for at, convert in converts if convert is not None]
        floats = [at for at, (block, signal) in enumerate(signals) if _may_be_infinite(block, signal)]
        # Twice, because itemgetter returns no tuple for one.
        self._floats = itemgetter(*floats, *floats) if floats else None

    def values(self, answers: Sequence[bytes]) -> dict[str, Any] | None:
        """Return the values by signal name, or None where `values.decoder` must be asked for one or more of them."""
        raws: list[Any] = []
        for (places, form), answer in zip(self._parts, answers, strict=True):
            raws += form.unpack(places.translate(answer.ljust(_TABLE_BYTES)))
        try:
            for at, convert in self._converts:
                raws[at] = convert(raws[at])
        except (ValueError, KeyError, OverflowError):
            return None
        if self._floats is not None and not isfinite(sum(self._floats(raws))):
            return None
        return dict(zip(self._names, raws, strict=True))


def _part(block: Block) -> tuple[bytes, Struct]:
    """Return where each byte of the gathered answer is found, and how that is unpacked: one item a signal."""
    places: list[int] = []
    form = ">"
    for signal in block.signals:
        at = signal.register - block.start
        if block.table in BIT_TABLES:
            places.append(at // 8)
            form += "B"
            continue
        words = list(range(at, at + signal.registers()))
        if signal.type in FORMATS and signal.word_order == "little":
            words.reverse()
        places += [2 * word + half for word in words for half in (0, 1)]
        form += _code(signal)
    return bytes(places), Struct(form)


def _code(signal: Signal) -> str:
    if signal.type == "string":
        return f"{2 * signal.length}s"
    if signal.type in FORMATS:
        return FORMATS[signal.type]
    return "h" if signal.type == "int16" else "H"


def _convert(block: Block, signal: Signal) -> Convert | None:
    """Return what makes the value of an unpacked item; None: nothing is to be done."""
    raw = _raw(block, signal)
    if signal.enumeration is not None:
        words = {int(number): word for number, word in signal.enumeration.items()}
        # A dict's own method costs less than a function of ours.
        return words.__getitem__ if raw is None else _both(raw, lambda item: words[int(item)])
    return _scaled(signal) if raw is None else raw


def _raw(block: Block, signal: Signal) -> Convert | None:
    if block.table in BIT_TABLES:
        mask = 1 << (signal.register - block.start) % 8
        return lambda item: bool(item & mask)
    if signal.bit is not None:
        mask = 1 << signal.bit
        return lambda item: bool(item & mask)
    if signal.type == "bool":
        return bool
    return text_of if signal.type == "string" else None


def _scaled(signal: Signal) -> Convert | None:
    scale, offset = signal.scale, signal.offset
    if scale == 1 and offset == 0:
        return float32 if signal.type == "float32" else None
    divisor = divisor_of(scale)
    if not divisor:
        if signal.type == "float32":
            return lambda item: float32(item) * scale + offset
        return lambda item: item * scale + offset
    if offset == 0 and divisor > 0 and not signal.type.startswith("float"):
        # item / divisor without a function of ours. Whole numbers have no -0, which adding 0 would turn into 0.
        return divisor.__rtruediv__
    if signal.type == "float32":
        return lambda item: float32(item) / divisor + offset
    digits = digits_of(divisor, offset)
    if digits is not None and not signal.type.startswith("float"):
        return lambda item: round(item / divisor + offset, digits)
    return lambda item: item / divisor + offset


def _both(first: Convert, second: Convert) -> Convert:
    return lambda item: second(first(item))


def _may_be_infinite(block: Block, signal: Signal) -> bool:
    if block.table in BIT_TABLES or signal.bit is not None or signal.enumeration is not None:
        return False
    if signal.type in ("bool", "string"):
        return False
    return signal.type.startswith("float") or (signal.scale, signal.offset) != (1, 0)
