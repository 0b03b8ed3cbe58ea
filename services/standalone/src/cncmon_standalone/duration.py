"""Durations as people write them: 30s, 5m, 1h30m, or a number of seconds."""

import re

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0}
_SHAPE = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse(text: str) -> float:
    """Return seconds.

    Raises:
        ValueError: says how to write one.
    """
    found = _SHAPE.fullmatch(text.strip().lower())
    amounts = found.groups() if found else (None, None, None)
    seconds = sum(float(amount) * unit for amount, unit in zip(amounts, _UNITS_S.values(), strict=True) if amount)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration: write it as 30s, 5m or 1h30m")
    return seconds


def show(seconds: float) -> str:
    """Return a duration for people: 4 s, 12 min, 3 h 05 min."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
