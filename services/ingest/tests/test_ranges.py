"""Arithmetic of gaps: checked against sets of seqs."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cncmon_ingest import ranges
from cncmon_ingest.ranges import Found, Gap

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=30)


def gap_of(sizes: list[int], base: int | None, *, counted: bool = True) -> Gap:
    return Gap(1, 10, 9 + len(sizes), sum(sizes) if counted else None, base, "lost", "declared", NOW)


@given(SIZES, st.sets(st.integers(0, 29)), st.booleans())
def test_pieces_are_what_is_left_and_their_counts_are_exact(sizes: list[int], turned_up: set[int], sure: bool) -> None:
    gap = gap_of(sizes, 100 if sure else None)
    found = [Found(10 + at, 10 + at, 100 + sum(sizes[:at]), sizes[at]) for at in sorted(turned_up) if at < len(sizes)]
    pieces = ranges.without(gap, found)
    left = {seq for piece in pieces for seq in range(piece.low, piece.high + 1)}
    assert left == {10 + at for at in range(len(sizes)) if at not in turned_up}
    assert sum(piece.samples or 0 for piece in pieces) == sum(sizes[seq - 10] for seq in left)
    if sure:
        for piece in pieces:
            assert piece.samples == sum(sizes[piece.low - 10 : piece.high - 9])
            assert piece.base == 100 + sum(sizes[: piece.low - 10])


def test_a_gap_of_unknown_count_stays_so() -> None:
    pieces = ranges.without(gap_of([1] * 9, None, counted=False), [Found(12, 12, None, 1)])
    assert [(piece.low, piece.high, piece.samples) for piece in pieces] == [(10, 11, None), (13, 18, None)]


def test_a_range_of_any_length_is_cut_at_once() -> None:
    gap = Gap(1, 1, 1 << 62, None, None, "lost", "declared", NOW)
    assert [(p.low, p.high) for p in ranges.without(gap, [Found(7, 7, 60, 10)])] == [(1, 6), (8, 1 << 62)]


def spans(seqs: set[int]) -> list[tuple[int, int]]:
    starts = sorted(seq for seq in seqs if seq - 1 not in seqs)
    return [(start, next(end for end in range(start, 99) if end + 1 not in seqs)) for start in starts]


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_beside_is_the_difference(holes: set[int], known: set[int]) -> None:
    assert {seq for low, high in ranges.beside(spans(holes), spans(known)) for seq in range(low, high + 1)} == (
        holes - known
    )


def test_what_touches_and_says_the_same_is_one() -> None:
    one, two = gap_of([1, 2], 0), Gap(1, 12, 14, 5, 3, "lost", "declared", NOW)
    assert ranges.joined([one, two]) == [Gap(1, 10, 14, 8, 0, "lost", "declared", NOW)]
    for other in (two._replace(reason="disk_cap"), two._replace(state="passed"), two._replace(low=13)):
        assert ranges.joined([one, other]) == [one, other]
    assert ranges.joined([one, two._replace(samples=None)])[0].samples is None
