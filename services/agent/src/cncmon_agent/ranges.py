"""Sets of whole numbers as sorted, disjoint, inclusive ranges that don't touch."""

from bisect import bisect_left
from collections.abc import Iterator

Range = tuple[int, int]
Ranges = list[Range]


def add(ranges: Ranges, first: int, last: int) -> None:
    """Add first..last (both included) to the set."""
    begin = bisect_left(ranges, first - 1, key=lambda held: held[1])
    end = begin
    while end < len(ranges) and ranges[end][0] <= last + 1:
        first, last = min(first, ranges[end][0]), max(last, ranges[end][1])
        end += 1
    ranges[begin:end] = [(first, last)]


def missing(ranges: Ranges, first: int, last: int) -> Iterator[Range]:
    """Iterate over the parts of first..last that are not in the set."""
    for low, high in ranges[bisect_left(ranges, first, key=lambda held: held[1]) :]:
        if low > last:
            break
        if low > first:
            yield first, low - 1
        first = max(first, high + 1)
    if first <= last:
        yield first, last


def end_of(ranges: Ranges, number: int) -> int | None:
    """Return the last number of the range that holds a number, or None."""
    at = bisect_left(ranges, number, key=lambda held: held[1])
    return ranges[at][1] if at < len(ranges) and ranges[at][0] <= number else None


def extend(ranges: Ranges, first: int, last: int) -> None:
    """Add first..last, which begins above all others: in constant time."""
    if ranges and ranges[-1][1] + 1 >= first:
        first = ranges.pop()[0]
    ranges.append((first, last))
