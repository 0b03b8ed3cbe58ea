"""What registers mean: one decoder a signal, made once when the machine is configured.

This is what decides, and what says of a signal why it has no value; `gather` does the same for all at once.
"""

import math
import struct
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from cncmon_core.machine import Signal

Registers = Sequence[int]
Decode = Callable[[Registers, int], Any]
"""Takes a block's registers and the index of the signal's first; returns the value or raises ValueError."""

FORMATS: Final = {"int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d"}
"""Types of more than one register, as `struct` has them."""


def decoder(signal: Signal) -> Decode:
    """Return the decoder of a signal: raw value, bit, scale and offset, enumeration.

    The decoder raises ValueError for NaN, infinity, and a number that the enumeration does not have.
    """
    raw = _raw(signal)
    if signal.enumeration is not None:
        return _enumerated(raw, {int(number): word for number, word in signal.enumeration.items()})
    if signal.type in ("bool", "string") or signal.bit is not None or signal.table in ("coil", "discrete"):
        return raw
    return _scaled(raw, signal)


def _raw(signal: Signal) -> Decode:
    if signal.table in ("coil", "discrete"):
        return lambda registers, at: bool(registers[at])
    if signal.bit is not None:
        mask = 1 << signal.bit
        return lambda registers, at: bool(registers[at] & mask)
    if signal.type == "uint16":
        return lambda registers, at: registers[at]
    if signal.type == "int16":
        return lambda registers, at: registers[at] - ((registers[at] & 0x8000) << 1)
    if signal.type == "bool":
        return lambda registers, at: registers[at] != 0
    if signal.type == "string":
        return _text(signal.length)
    return _wide(f">{FORMATS[signal.type]}", signal.registers(), signal.word_order)


def _wide(number: str, width: int, word_order: str) -> Decode:
    pack = struct.Struct(f">{width}H").pack
    unpack = struct.Struct(number).unpack
    step = 1 if word_order == "big" else -1
    short = number == ">f"

    def decode(registers: Registers, at: int) -> Any:
        (value,) = unpack(pack(*registers[at : at + width][::step]))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the controller sent {value}")
        return float32(value) if short else value

    return decode


def float32(value: float) -> float:
    """Return a 32-bit float as the number of nine digits that it is: 4.3274, not 4.327400207519531.

    Nine digits tell every 32-bit float from its neighbours (IEEE 754-2019, 5.12.2); the rest is of our making, and each
    digit of it is stored and sent for years.
    """
    return float(f"{value:.9g}")


def _text(length: int) -> Decode:
    pack = struct.Struct(f">{length}H").pack

    def decode(registers: Registers, at: int) -> str:
        return text_of(pack(*registers[at : at + length]))

    return decode


@lru_cache(maxsize=1024)
def text_of(data: bytes) -> str:
    """Return the text of a string's registers. Programs and tools change seldom: most are those of the poll before."""
    return data.split(b"\0", 1)[0].decode("latin-1").strip()


def _enumerated(raw: Decode, words: dict[int, str]) -> Decode:
    def decode(registers: Registers, at: int) -> str:
        number = int(raw(registers, at))
        try:
            return words[number]
        except KeyError:
            raise ValueError(f"the controller sent {number}, which the enumeration does not have") from None

    return decode


def _scaled(raw: Decode, signal: Signal) -> Decode:
    scale, offset = signal.scale, signal.offset
    if scale == 1 and offset == 0:
        return raw
    divisor = divisor_of(scale)
    if divisor:
        digits = digits_of(divisor, offset)
        if digits is not None and not signal.type.startswith("float"):
            return _finite(lambda registers, at: round(raw(registers, at) / divisor + offset, digits))
        return _finite(lambda registers, at: raw(registers, at) / divisor + offset)
    return _finite(lambda registers, at: raw(registers, at) * scale + offset)


def divisor_of(scale: float) -> int:
    """Return the whole number that a scale such as 0.001 is one part of, else 0.

    253 × 0.1 is 25.3 and a bit; 253 / 10 is the float nearest to 25.3. Scales are mostly such fractions.
    """
    divisor = round(1 / scale) if 1e-15 < abs(scale) < 1 else 0
    return divisor if divisor and 1 / divisor == scale else 0


def digits_of(divisor: int, offset: float) -> int | None:
    """Return the decimals of a whole number by a power of ten plus an offset; None where it has no such end.

    3065 / 10 - 273.15 is 33.35 and 0.00000000000003: rounded to two decimals it is what was meant.
    """
    places = len(str(divisor)) - 1
    if divisor != 10**places:
        return None
    exponent = Decimal(repr(offset)).normalize().as_tuple().exponent
    return max(places, -exponent) if isinstance(exponent, int) else None


def _finite(scaled: Decode) -> Decode:
    def decode(registers: Registers, at: int) -> float:
        value: float = scaled(registers, at)
        if not math.isfinite(value):
            raise ValueError(f"scale and offset make it {value}")
        return value

    return decode
