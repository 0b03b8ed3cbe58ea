"""All values at once are what they are one by one, or nothing is said."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_agent.drivers.modbus.driver import _registers
from cncmon_agent.drivers.modbus.gather import Gather
from cncmon_agent.drivers.modbus.plan import BIT_TABLES, Block, plan
from cncmon_agent.drivers.modbus.values import decoder, float32
from cncmon_core.machine import ModbusConnection, Signal
from cncmon_core.machine_rules import problems_of_signals

TYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bool", "string")
SCALES = (1.0, 0.1, 0.01, 0.001, -0.1, -1.0, 2.5, 0.3, 0.0, 1e-320, 1e300)


def one_by_one(blocks: list[Block], answers: list[bytes]) -> tuple[dict[str, Any], set[str]]:
    """Return the values, and the names of those that have none."""
    values: dict[str, Any] = {}
    bad: set[str] = set()
    for block, answer in zip(blocks, answers, strict=True):
        for signal in block.signals:
            try:
                values[signal.name] = decoder(signal)(_registers(block, answer), signal.register - block.start)
            except (ValueError, OverflowError):
                bad.add(signal.name)
    return values, bad


@st.composite
def signals(draw: st.DrawFn) -> list[Signal]:
    made = []
    for number in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(TYPES))
        fields: dict[str, Any] = {
            "name": f"s{number}",
            "register": draw(st.integers(0, 60)),
            "type": kind,
            "table": draw(st.sampled_from(("holding", "holding", "input", "coil", "discrete"))),
            "word_order": draw(st.sampled_from(("big", "little"))),
            "length": draw(st.integers(1, 5)),
            "scale": draw(st.sampled_from(SCALES)),
            "offset": draw(st.sampled_from((0.0, 0.0, -0.0, -273.15, 1e308))),
        }
        if kind in ("uint16", "bool"):
            fields["bit"] = draw(st.none() | st.integers(0, 15))
        if not kind.startswith(("float", "string")) and draw(st.integers(0, 3)) == 0:
            fields["enumeration"] = {str(raw): f"w{raw}" for raw in range(-1, 4)}
        made.append(Signal(**fields))
    return made


@settings(max_examples=600)
@given(signals(), st.data())
def test_the_same_as_one_by_one(made: list[Signal], data: st.DataObject) -> None:
    assert problems_of_signals(made) == []
    blocks = plan(made, ModbusConnection(host="x", gap_max=data.draw(st.sampled_from((0, 16, 125)))))
    gather = Gather(blocks)
    for _ in range(3):
        answers = [
            data.draw(st.binary(min_size=size, max_size=size) | st.just(bytes(size)) | st.just((b"\0\1" * size)[:size]))
            for size in ((b.count + 7) // 8 if b.table in BIT_TABLES else 2 * b.count for b in blocks)
        ]
        expected, bad = one_by_one(blocks, answers)
        found = gather.values(answers)
        if bad:
            assert found is None
        elif found is not None:
            # By repr: 1 is equal to 1.0 and to True, and -0.0 to 0.0.
            assert {name: repr(value) for name, value in found.items()} == {n: repr(v) for n, v in expected.items()}
            assert list(found) == list(expected)


def floats(*values: float) -> tuple[list[Block], list[bytes]]:
    made = [Signal(name=f"s{n}", register=2 * n, type="float32") for n in range(len(values))]
    return plan(made, ModbusConnection(host="x")), [struct.pack(f">{len(values)}f", *values)]


@pytest.mark.parametrize("values", [(1.5,), (1.5, -2.0), (3e38, 3e38, -3e38)])
def test_finite_numbers_are_found_at_once(values: tuple[float, ...]) -> None:
    blocks, answers = floats(*values)
    found = Gather(blocks).values(answers)
    assert found is not None
    assert list(found.values()) == [float32(struct.unpack(">f", struct.pack(">f", value))[0]) for value in values]


@pytest.mark.parametrize("values", [(float("nan"),), (1.0, float("inf")), (float("inf"), float("-inf"))])
def test_others_are_left_to_who_knows_what_to_say(values: tuple[float, ...]) -> None:
    blocks, answers = floats(*values)
    assert Gather(blocks).values(answers) is None


def test_the_longest_answer() -> None:
    made = [Signal(name=f"s{n}", register=n) for n in range(125)]
    blocks = plan(made, ModbusConnection(host="x"))
    assert Gather(blocks).values([struct.pack(">125H", *range(125))]) == {f"s{n}": n for n in range(125)}
    bits = [Signal(name=f"s{n}", register=n, table="coil") for n in range(2000)]
    blocks = plan(bits, ModbusConnection(host="x", gap_max=125))
    found = Gather(blocks).values([b"\x55" * 250])
    assert found == {f"s{n}": n % 2 == 0 for n in range(2000)}
