from random import Random

from hypothesis import given
from hypothesis import strategies as st

from cncmon_core.backoff import Backoff


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.integers(), st.integers(0, 40))
def test_bounds(base_s: float, max_s: float, seed: int, tries: int) -> None:
    backoff = Backoff(base_s, max_s, Random(seed))
    for number in range(tries):
        bound = min(max_s, base_s * 2**number)
        assert bound / 10 <= backoff.next_s() <= bound
    backoff.reset()
    assert backoff.next_s() <= min(max_s, base_s)


def test_after_years_of_tries_the_bound_is_the_last_one() -> None:
    backoff = Backoff(0.25, 10, tries=10**9)
    assert 1 <= backoff.next_s() <= 10
    assert backoff.tries == 10**9 + 1


def test_two_who_failed_together_do_not_come_back_together() -> None:
    ours, theirs = Backoff(1, 60), Backoff(1, 60)
    assert [ours.next_s() for _ in range(6)] != [theirs.next_s() for _ in range(6)]


def test_the_waits_spread_over_their_range() -> None:
    waits = [Backoff(1, 1, Random(seed)).next_s() for seed in range(200)]
    assert min(waits) < 0.2
    assert max(waits) > 0.9
