"""Rule A6: a twin is told from a restart by the order of boot ids."""

import pytest

from cncmon_core.names import Origin
from cncmon_ingest.clones import BOOTS_MAX, WINDOW_S, Clones

EDGE = Origin("hall", "e1")


def after(boots: str, every_s: float = 5.0) -> tuple[Clones, float]:
    clones = Clones()
    for number, boot_id in enumerate(boots):
        clones.note(EDGE, boot_id, number * every_s)
    return clones, (len(boots) - 1) * every_s


@pytest.mark.parametrize(
    ("boots", "cloned"),
    [
        ("AAAAAAAA", False),
        ("AAABBBBB", False),  # a restart
        ("ABCDEFGH", False),  # one that crashes at each start
        ("AABABBBB", False),  # a restart whose predecessor's last heartbeat came late
        ("ABABA", True),
        ("AABBAABBA", True),
        ("ABABCBCB", True),
    ],
)
def test_delivery_a6_two_live_boot_ids(boots: str, cloned: bool) -> None:
    clones, now_s = after(boots)
    assert bool(clones.found(now_s)) is cloned


@pytest.mark.parametrize("every_s", [2.5, 5.0, 10.0, 15.0])
def test_delivery_a6_alerted_within_a_minute(every_s: float) -> None:
    """Two agents whose heartbeats alternate: each sends every 2 × every_s."""
    clones, _ = after("AB" * 20, 0.0)
    clones = Clones()
    for number in range(int(60 / every_s) + 1):
        clones.note(EDGE, "AB"[number % 2], number * every_s)
    assert clones.found(60.0) == {EDGE: ["A", "B"]}


def test_delivery_a6_the_alarm_ends_with_the_twin() -> None:
    clones, now_s = after("ABABABAB")
    for number in range(100):
        clones.note(EDGE, "A", now_s + 5 * number)
    assert clones.found(now_s + WINDOW_S - 30) != {}
    assert clones.found(now_s + WINDOW_S + 1) == {}


def test_an_edge_that_starts_for_ever_and_edges_that_are_gone_take_no_memory() -> None:
    clones = Clones()
    for number in range(10 * BOOTS_MAX):
        clones.note(EDGE, str(number), number / 1000)
    assert len(clones._seen[EDGE].boots) == BOOTS_MAX
    assert clones.found(WINDOW_S + 10) == {}
    assert clones._seen == {}
