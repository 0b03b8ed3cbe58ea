"""How numbers, times and tables look to people."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def size(count: int) -> str:
    """Return bytes with a unit."""
    value = float(count)
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def time(unix_ms: int | None) -> str:
    """Return a Unix time as text, UTC; a dash for None."""
    return "-" if unix_ms is None else iso(unix_ms)[:19].replace("T", " ")


def iso(unix_ms: int) -> str:
    """Return a Unix time in RFC 3339, UTC."""
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)).isoformat()
    except OverflowError:
        # A clock that had gone mad; the number is still worth seeing.
        return f"{unix_ms} ms"


def parse_time(text: str, now: datetime) -> int:
    """Return the Unix ms of a time in ISO 8601 (UTC where it names no zone), or of an age such as 90m, 24h or 7d.

    Raises:
        ValueError: it is neither.
    """
    if text[-1:] in SECONDS and text[:-1].replace(".", "", 1).isdecimal():
        return int((now.timestamp() - float(text[:-1]) * SECONDS[text[-1]]) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: say 2026-03-01T06:00 (UTC), or an age such as 90m, 24h or 7d") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def table(rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> list[str]:
    """Return lines with the columns aligned. right: columns aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def span(first: int, last: int) -> str:
    """Return a range of numbers, both ends included: `7` or `7-9`."""
    return str(first) if first == last else f"{first}-{last}"


def number(count: int, what: str) -> str:
    """Return a count with its noun: `1 batch`, `2 batches`."""
    ending = "" if count == 1 else "es" if what == "batch" else "s"
    return f"{count:,} {what}{ending}"
