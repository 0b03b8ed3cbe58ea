import pytest

from cncmon_standalone import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("30", 30), ("1.5s", 1.5), ("5m", 300), ("1h", 3600), ("1h30m", 5400), (" 2H ", 7200), ("1m30", 90)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "5 apples", "s", "30s5m", "nan", "1d"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 30s, 5m or 1h30m"):
        duration.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "61 s"), (120, "2 min"), (7140, "119 min"), (11_100, "3 h 05 min")]
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert duration.show(seconds) == text
