"""Values of a whole poll at once: what `values` does signal by signal, for polls in which nothing is amiss.

What a machine's documents say of its signals does not change from poll to poll, so it is turned into a function once:
one `struct` unpacks an answer, then each signal has one expression. Where registers overlap, are out of order or leave
gaps, the answer is first gathered by one `bytes.translate` (the map from place to byte is the text, the answer is the
table). Machines of one profile share the function. Whatever is unusual (NaN, a number that the enumeration does not
have) makes it give up, and `values`, which knows what to say of each signal, is asked.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isfinite
from struct import Struct
from typing import Any, Final

from cncmon_agent.drivers.modbus.plan import BIT_TABLES, Block
from cncmon_agent.drivers.modbus.values import FORMATS, digits_of, divisor_of, text_of
from cncmon_core.machine import Signal

_TABLE_BYTES: Final = 256
"""`bytes.translate` wants a table of this size; an answer has at most 250 bytes of data."""

Values = Callable[[Sequence[bytes]], dict[str, Any] | None]

_NAMES: Final = {"Struct": Struct, "isfinite": isfinite, "text_of": text_of}


class Gather:
    """Decodes the answers to these blocks, in this order."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.values: Values = _function(_source(blocks))
        """Return the values by signal name, or None where `values.decoder` must be asked for one or more of them."""


@lru_cache(maxsize=256)
def _function(source: str) -> Values:
    names: dict[str, Any] = dict(_NAMES)
    # Nothing of a document is in the text but numbers, and names as literals by `repr`.
    exec(source, names)  # noqa: S102
    values: Values = names["values"]
    return values


def _source(blocks: Sequence[Block]) -> str:
    """Return the function's text. What it needs each time are defaults of its parameters: these are found fastest."""
    parameters, unpacked, converted, floats, items = ["answers"], [], [], [], []
    number = 0
    for at, block in enumerate(blocks):
        places, form = _part(block)
        answer = f"answers[{at}]"
        if list(places) != list(range(_data_bytes(block))):
            parameters.append(f"places_{at}={places!r}")
            answer = f"places_{at}.translate({answer}.ljust({_TABLE_BYTES}))"
        parameters.append(f"unpack_{at}=Struct({form!r}).unpack")
        unpacked.append(f"[{', '.join(f'v{number + index}' for index in range(len(block.signals)))}]")
        unpacked[-1] += f" = unpack_{at}({answer})"
        for signal in block.signals:
            name = f"v{number}"
            if signal.enumeration is not None:
                words = {int(raw): word for raw, word in signal.enumeration.items()}
                parameters.append(f"words_{number}={words!r}")
            expression = _expression(block, signal, name, f"words_{number}")
            if expression != name:
                converted.append(f"{name} = {expression}")
            if _may_be_infinite(block, signal):
                floats.append(name)
            items.append(f"{signal.name!r}: {name}")
            number += 1
    body = "\n        ".join([*unpacked, *converted]) or "pass"
    finite = f"    if not isfinite({' + '.join(floats)}):\n        return None\n" if floats else ""
    return (
        f"def values({', '.join(parameters)}):\n    try:\n        {body}\n"
        f"    except (ValueError, KeyError, OverflowError):\n        return None\n"
        f"{finite}    return {{{', '.join(items)}}}\n"
    )


def _data_bytes(block: Block) -> int:
    return (block.count + 7) // 8 if block.table in BIT_TABLES else 2 * block.count


def _part(block: Block) -> tuple[bytes, str]:
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
    return bytes(places), form


def _code(signal: Signal) -> str:
    if signal.type == "string":
        return f"{2 * signal.length}s"
    if signal.type in FORMATS:
        return FORMATS[signal.type]
    return "h" if signal.type == "int16" else "H"


def _expression(block: Block, signal: Signal, item: str, words: str) -> str:
    """Return what makes the value of an unpacked item."""
    raw = _raw(block, signal, item)
    if signal.enumeration is not None:
        return f"{words}[{item}]" if raw is None else f"{words}[int({raw})]"
    return _scaled(signal, item) if raw is None else raw


def _raw(block: Block, signal: Signal, item: str) -> str | None:
    if block.table in BIT_TABLES:
        return f"({item} & {1 << (signal.register - block.start) % 8}) != 0"
    if signal.bit is not None:
        return f"({item} & {1 << signal.bit}) != 0"
    if signal.type == "bool":
        return f"{item} != 0"
    return f"text_of({item})" if signal.type == "string" else None


def _scaled(signal: Signal, item: str) -> str:
    scale, offset = signal.scale, signal.offset
    # `values.float32`, without a call.
    value = f'float(f"{{{item}:.9g}}")' if signal.type == "float32" else item
    if scale == 1 and offset == 0:
        return value
    plus = f"+ {_number(offset)}"
    divisor = divisor_of(scale)
    if not divisor:
        return f"{value} * {_number(scale)} {plus}"
    if signal.type.startswith("float"):
        return f"{value} / {divisor} {plus}"
    if offset == 0 and divisor > 0:
        # Whole numbers have no -0, which adding 0 would turn into 0.
        return f"{item} / {divisor}"
    digits = digits_of(divisor, offset)
    return f"{item} / {divisor} {plus}" if digits is None else f"round({item} / {divisor} {plus}, {digits})"


def _number(value: float) -> str:
    return repr(value) if isfinite(value) else f"float({str(value)!r})"


def _may_be_infinite(block: Block, signal: Signal) -> bool:
    if block.table in BIT_TABLES or signal.bit is not None or signal.enumeration is not None:
        return False
    if signal.type in ("bool", "string"):
        return False
    return signal.type.startswith("float") or (signal.scale, signal.offset) != (1, 0)
