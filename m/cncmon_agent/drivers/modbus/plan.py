"""The fewest requests that cover all signals of a machine (Modbus Application Protocol 1.1b3, sections 6.1–6.4)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

from cncmon_core.machine import ModbusConnection, Signal

BITS_MAX: Final = 2000
"""Coils or discrete inputs in one answer (0x07D0)."""

BIT_TABLES: Final = ("coil", "discrete")


class Block(msgspec.Struct, frozen=True):
    """One request: `count` registers (or bits) of a table from `start`, for the signals that lie in it."""

    table: str
    start: int
    count: int
    signals: tuple[Signal, ...]


def plan(signals: Sequence[Signal], connection: ModbusConnection) -> list[Block]:
    """Return the requests. Neighbours share one where it stays within the device's limit and the gap is small.

    Greedy from the lowest address on is optimal here: each request begins at the first signal not yet covered, and
    reaching further never needs more requests.
    """
    blocks: list[Block] = []
    for table in ("holding", "input", *BIT_TABLES):
        limit = BITS_MAX if table in BIT_TABLES else connection.registers_max
        group: list[Signal] = []
        end = 0
        for signal in sorted((s for s in signals if s.table == table), key=lambda s: s.register):
            reach = signal.register + _width(signal)
            start = group[0].register if group else 0
            if group and (signal.register - end > connection.gap_max or max(end, reach) - start > limit):
                blocks.append(_block(table, group))
                group, end = [], 0
            group.append(signal)
            end = max(end, reach)
        if group:
            blocks.append(_block(table, group))
    return blocks


def split(block: Block) -> list[Block]:
    """Return a refused request as two, cut between its signals where the gap is widest; one signal can't be split."""
    signals = sorted(block.signals, key=lambda s: s.register)
    if len(signals) < 2:
        return [block]
    gaps = [b.register - a.register - _width(a) for a, b in pairwise(signals)]
    widest = max(gaps)
    middle = len(signals) // 2
    cut = gaps.index(widest) + 1 if widest > 0 else middle
    return [_block(block.table, signals[:cut]), _block(block.table, signals[cut:])]


def _width(signal: Signal) -> int:
    return 1 if signal.table in BIT_TABLES else signal.registers()


def _block(table: str, signals: Sequence[Signal]) -> Block:
    start = signals[0].register
    end = max(signal.register + _width(signal) for signal in signals)
    return Block(table, start, end - start, tuple(signals))
