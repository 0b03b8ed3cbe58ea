import math
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_agent.drivers.modbus.values import decoder
from cncmon_core.machine import Signal

FORMATS = {
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "uint32": ">I",
    "int64": ">q",
    "uint64": ">Q",
    "float32": ">f",
    "float64": ">d",
}


def registers_of(kind: str, value: float, word_order: str = "big") -> list[int]:
    """Return a value's registers, first register first, as a controller of that word order holds them."""
    data = struct.pack(FORMATS[kind], value)
    words = [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
    return words if word_order == "big" else words[::-1]


def decode(registers: list[int], at: int = 0, **fields: Any) -> Any:
    return decoder(Signal(**({"name": "x", "register": 0} | fields)))(registers, at)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, float]:
    kind = draw(st.sampled_from(list(FORMATS)))
    if kind.startswith("float"):
        return kind, draw(st.floats(allow_nan=False, allow_infinity=False, width=int(kind[5:])))
    bits = int(kind.rsplit("t", 1)[1])
    low, high = (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)
    return kind, draw(st.integers(low, high) | st.sampled_from((low, high, 0)))


@settings(max_examples=400)
@given(numbers(), st.sampled_from(("big", "little")), st.lists(st.integers(0, 65535), max_size=5), st.data())
def test_every_type_in_every_word_order(
    number: tuple[str, float], order: str, before: list[int], data: st.DataObject
) -> None:
    kind, value = number
    after = data.draw(st.lists(st.integers(0, 65535), max_size=3))
    registers = before + registers_of(kind, value, order) + after
    found = decode(registers, len(before), type=kind, word_order=order)
    if kind == "float32":
        # In fewer digits, and the same 32 bits.
        assert len(Decimal(repr(found)).normalize().as_tuple().digits) <= 9
        found = struct.unpack(">f", struct.pack(">f", found))[0]
    assert (found, type(found), math.copysign(1, found)) == (value, type(value), math.copysign(1, value))


@pytest.mark.parametrize(
    ("registers", "fields", "value"),
    [
        ([253], {"scale": 0.1}, 25.3),
        ([0xFFFF], {"type": "int16", "scale": 0.1}, -0.1),
        ([7], {"scale": 0.001}, 0.007),
        ([2982], {"scale": 0.1, "offset": -273.15}, 25.05),
        ([3], {"scale": -0.5}, -1.5),
        ([3], {"scale": 2.5, "offset": 1.0}, 8.5),
        ([3], {"scale": 0.3}, 3 * 0.3),
        ([3], {"scale": 0.0, "offset": 4.0}, 4.0),
        ([9], {"scale": 1e-320}, 9 * 1e-320),
        ([9], {"scale": 5e-324}, 9 * 5e-324),
        ([0b1000], {"bit": 3}, True),
        ([0b0111], {"bit": 3}, False),
        ([0x8000], {"bit": 15, "type": "bool"}, True),
        ([0], {"type": "bool"}, False),
        ([5], {"type": "bool"}, True),
        ([True], {"table": "coil"}, True),
        ([False], {"table": "discrete", "type": "uint16", "scale": 5.0}, False),
        ([2], {"enumeration": {"2": "hold"}}, "hold"),
        ([0xFFFF], {"type": "int16", "enumeration": {"-1": "alarm"}}, "alarm"),
        ([0, 1], {"type": "uint32", "enumeration": {"1": "idle"}}, "idle"),
        ([0b100], {"bit": 2, "enumeration": {"0": "closed", "1": "open"}}, "open"),
        ([True], {"table": "coil", "enumeration": {"0": "off", "1": "on"}}, "on"),
        # The enumeration is of the raw number: scale and offset have no say.
        ([2], {"scale": 0.1, "offset": 5.0, "enumeration": {"2": "hold"}}, "hold"),
        ([0x4F31, 0x3233, 0x0041], {"type": "string", "length": 3}, "O123"),
        ([0x4F31, 0x2020], {"type": "string", "length": 2}, "O1"),
        ([0x4100, 0x4242], {"type": "string", "length": 2}, "A"),
        ([0, 0], {"type": "string", "length": 2}, ""),
        ([0xE9FF], {"type": "string", "length": 1}, "éÿ"),
    ],
    ids=str,
)
def test_values(registers: list[int], fields: dict[str, Any], value: Any) -> None:
    found = decode(registers, **fields)
    assert (found, type(found)) == (value, type(value))


@settings(max_examples=300)
@given(numbers().filter(lambda n: not n[0].startswith("float")), st.integers(1, 6))
def test_a_scale_of_a_tenth_gives_the_nearest_float(number: tuple[str, float], digits: int) -> None:
    kind, raw = number
    found = decode(registers_of(kind, raw), type=kind, scale=float(f"1e-{digits}"))
    assert found == float(Decimal(int(raw)).scaleb(-digits))


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("word_order", ["big", "little"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_what_is_no_number_is_refused(kind: str, word_order: str, value: float, scale: float) -> None:
    with pytest.raises(ValueError, match=f"the controller sent {value}"):
        decode(registers_of(kind, value, word_order), type=kind, word_order=word_order, scale=scale)


@pytest.mark.parametrize(
    ("kind", "raw", "changes"),
    [
        ("float64", 1e308, {"scale": 10.0}),
        ("float64", -1e308, {"scale": 1.0, "offset": -1.7e308}),
        ("uint64", (1 << 64) - 1, {"scale": 1e300}),
        ("float32", 3e38, {"scale": 1e300}),
    ],
)
def test_what_scaling_makes_infinite_is_refused(kind: str, raw: float, changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"scale and offset make it -?inf"):
        decode(registers_of(kind, raw), type=kind, **changes)


@pytest.mark.parametrize("raw", [1, 3, 65535])
def test_a_number_that_the_enumeration_does_not_have_is_named(raw: int) -> None:
    with pytest.raises(ValueError, match=f"the controller sent {raw}, which the enumeration does not have"):
        decode([raw], enumeration={"0": "idle", "2": "hold"})
