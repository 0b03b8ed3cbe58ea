"""Sorted, disjoint ranges of seqs, both ends included."""

Range = tuple[int, int]


def add(ranges: list[Range], first: int, last: int) -> None:
    """Add a range, joined with those it touches."""
    joined = []
    for low, high in ranges:
        if high + 1 < first or low > last + 1:
            joined.append((low, high))
        else:
            first, last = min(first, low), max(last, high)
    joined.append((first, last))
    joined.sort()
    ranges[:] = joined


def end_of(ranges: list[Range], seq: int) -> int | None:
    """Return the last seq of the range that holds a seq, or None."""
    return next((high for low, high in ranges if low <= seq <= high), None)


def extend(ranges: list[Range], first: int, last: int) -> None:
    """Add a range that begins above all others, joined with the last where they touch."""
    if ranges and ranges[-1][1] + 1 >= first:
        first = ranges.pop()[0]
    ranges.append((first, last))
