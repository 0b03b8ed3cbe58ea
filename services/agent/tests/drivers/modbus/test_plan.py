from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_agent.drivers.modbus.plan import BITS_MAX, Block, plan, split
from cncmon_core.machine import ModbusConnection, Signal

WIDTHS = {"uint16": 1, "float32": 2, "int64": 4}


def width(signal: Signal) -> int:
    return 1 if signal.table in ("coil", "discrete") else signal.registers()


@st.composite
def signals(draw: st.DrawFn, count_max: int = 40, reach: int = 400, strings: bool = True) -> list[Signal]:
    types = [*WIDTHS, "string"] if strings else [*WIDTHS]
    return [
        Signal(
            name=f"s{number}",
            table=draw(st.sampled_from(("holding", "input", "coil", "discrete"))) if strings else "holding",
            register=draw(st.integers(0, reach)),
            type=draw(st.sampled_from(types)),
            length=draw(st.integers(1, 8)),
        )
        for number in range(draw(st.integers(0, count_max)))
    ]


CONNECTIONS = st.builds(
    ModbusConnection, host=st.just("h"), registers_max=st.integers(8, 125), gap_max=st.integers(0, 125)
)


def gaps(block: Block) -> list[int]:
    """Return the runs of registers in a block that no signal has."""
    taken = {r for s in block.signals for r in range(s.register, s.register + width(s))}
    ends = sorted({block.start - 1, block.start + block.count, *taken})
    return [b - a - 1 for a, b in pairwise(ends) if b - a > 1]


@settings(max_examples=300)
@given(signals(), CONNECTIONS)
def test_every_signal_is_in_one_block_and_blocks_are_within_limits(
    wanted: list[Signal], connection: ModbusConnection
) -> None:
    blocks = plan(wanted, connection)
    assert sorted(signal.name for block in blocks for signal in block.signals) == sorted(s.name for s in wanted)
    for block in blocks:
        assert 1 <= block.count <= (connection.registers_max if block.table in ("holding", "input") else BITS_MAX)
        for signal in block.signals:
            assert signal.table == block.table
            assert block.start <= signal.register
            assert signal.register + width(signal) <= block.start + block.count
        assert block.start == min(signal.register for signal in block.signals)
        assert max(gaps(block), default=0) <= connection.gap_max


def least(wanted: list[Signal], fits: Callable[[list[Signal]], bool]) -> int:
    """Return the fewest groups that any division at all needs."""
    if not wanted:
        return 0
    first, rest = wanted[0], wanted[1:]
    best = len(wanted)
    for mask in range(1 << len(rest)):
        group = [first, *(s for bit, s in enumerate(rest) if mask >> bit & 1)]
        if fits(group):
            best = min(best, 1 + least([s for bit, s in enumerate(rest) if not mask >> bit & 1], fits))
    return best


@settings(max_examples=200)
@given(signals(count_max=6, reach=30, strings=False), st.integers(4, 16), st.integers(0, 8))
def test_no_plan_takes_fewer_requests(wanted: list[Signal], registers_max: int, gap_max: int) -> None:
    connection = ModbusConnection(host="h", registers_max=registers_max, gap_max=gap_max)

    def fits(group: list[Signal]) -> bool:
        start = min(s.register for s in group)
        count = max(s.register + width(s) for s in group) - start
        return count <= registers_max and max(gaps(Block("holding", start, count, tuple(group))), default=0) <= gap_max

    assert len(plan(wanted, connection)) == least(wanted, fits)


def requests(*places: tuple[int, int], **changes: int) -> list[tuple[int, int]]:
    """Plan for signals given as (register, registers); return (start, count) of each request."""
    wanted = [
        Signal(name=f"s{n}", register=register, type="string", length=length)
        for n, (register, length) in enumerate(places)
    ]
    return [(b.start, b.count) for b in plan(wanted, ModbusConnection(host="h", **changes))]


@pytest.mark.parametrize(
    ("places", "changes", "planned"),
    [
        ([], {}, []),
        ([(100, 2)], {}, [(100, 2)]),
        ([(0, 1), (17, 1)], {}, [(0, 18)]),
        ([(0, 1), (18, 1)], {}, [(0, 1), (18, 1)]),
        ([(0, 1), (1, 1)], {"gap_max": 0}, [(0, 2)]),
        ([(0, 1), (2, 1)], {"gap_max": 0}, [(0, 1), (2, 1)]),
        ([(0, 64), (64, 61)], {}, [(0, 125)]),
        ([(0, 64), (64, 62)], {}, [(0, 64), (64, 62)]),
        ([(0, 10), (3, 2), (9, 4)], {}, [(0, 13)]),
        ([(5, 1), (0, 1)], {}, [(0, 6)]),
        ([(65535, 1)], {}, [(65535, 1)]),
        ([(0, 1), (0, 1)], {"registers_max": 1}, [(0, 1)]),
        # A text wider than the device answers at once stands alone: it can't be read, the others can.
        ([(0, 1), (1, 20), (21, 1)], {"registers_max": 10}, [(0, 1), (1, 20), (21, 1)]),
        ([(0, 20), (3, 1)], {"registers_max": 10}, [(0, 20), (3, 1)]),
    ],
)
def test_requests(places: list[tuple[int, int]], changes: dict[str, int], planned: list[tuple[int, int]]) -> None:
    assert requests(*places, **changes) == planned


def test_tables_are_never_mixed_and_bits_have_their_own_limit() -> None:
    wanted = [
        Signal(name="a", register=0),
        Signal(name="b", register=1, table="input"),
        Signal(name="c", register=2, table="coil"),
        Signal(name="d", register=3, table="discrete"),
        *(Signal(name=f"c{n}", register=n, table="coil") for n in range(10, 2010, 10)),
    ]
    blocks = plan(wanted, ModbusConnection(host="h"))
    assert [(b.table, b.start, b.count) for b in blocks] == [
        ("holding", 0, 1),
        ("input", 1, 1),
        ("coil", 2, 1999),
        ("discrete", 3, 1),
    ]


@given(signals(reach=100).filter(bool))
def test_splitting_ends_with_single_signals_and_loses_none(wanted: list[Signal]) -> None:
    (block, *_) = plan(wanted, ModbusConnection(host="h"))
    todo, single, steps = [block], [], 0
    while todo:
        part = todo.pop()
        halves = split(part)
        steps += 1
        if len(part.signals) == 1:
            assert halves == [part]
            single.append(part)
            continue
        assert len(halves) == 2
        assert sum(len(half.signals) for half in halves) == len(part.signals)
        assert all(half.signals for half in halves)
        todo += halves
    assert sorted(b.signals[0].name for b in single) == sorted(s.name for s in block.signals)
    assert steps == 2 * len(block.signals) - 1
    for part in single:
        assert (part.start, part.count) == (part.signals[0].register, width(part.signals[0]))


def test_a_request_is_split_at_its_widest_gap() -> None:
    wanted = [Signal(name=f"s{register}", register=register) for register in (0, 1, 2, 12, 13)]
    (block,) = plan(wanted, ModbusConnection(host="h"))
    assert [(b.start, b.count) for b in split(block)] == [(0, 3), (12, 2)]
