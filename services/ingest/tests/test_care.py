import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_ingest.care import FULL_RATIO, ROOM_RATIO, purge_up_to


@pytest.mark.parametrize(
    ("first", "messages", "fill", "floor", "up_to"),
    [
        (1, 1000, 0.70, 1000, None),  # not over the limit yet
        (1, 1000, 0.80, 1000, 252),  # a quarter of 0.8 is 0.2
        (1, 1000, 0.80, 100, 101),  # only what is committed
        (501, 1000, 0.80, 500, None),  # nothing of it is committed
        (1, 0, 0.90, 0, None),
    ],
)
def test_how_far_to_purge(first: int, messages: int, fill: float, floor: int, up_to: int | None) -> None:
    assert purge_up_to(first, messages, fill, floor) == up_to


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.floats(0, 1.2), st.integers(0, 10**9))
def test_never_past_the_committed_floor_and_never_more_than_needed(
    first: int, messages: int, fill: float, floor: int
) -> None:
    up_to = purge_up_to(first, messages, fill, floor)
    if up_to is None:
        assert fill <= FULL_RATIO or messages == 0 or floor < first
    else:
        assert first < up_to <= floor + 1
        left = messages - (up_to - first)
        assert left / messages * fill >= ROOM_RATIO - 2 * fill / messages
