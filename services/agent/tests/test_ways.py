"""Where the stream put each batch: compact, and exact where it matters."""

from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent.ways import CHUNK, Ways

SEQS = st.integers(1, 4 * CHUNK)


def test_what_is_not_taken_is_not_there() -> None:
    ways = Ways()
    assert ways.get(1) is None
    assert 1 not in ways
    ways.forget(1)
    ways.drop(10**9)


@given(st.dictionaries(SEQS, st.tuples(st.integers(1, 1 << 40), st.floats(0, 1e5)), max_size=40), st.sets(SEQS))
def test_it_is_a_dictionary_with_times_rounded_up(taken, forgotten) -> None:
    # Sequences far apart within a chunk: only what the newest leaves in reach is remembered, never a wrong place.
    ways = Ways()
    for seq, (stream_seq, at_s) in taken.items():
        ways.take(seq, stream_seq, at_s)
    for seq in forgotten:
        ways.forget(seq)
    for seq, (stream_seq, at_s) in taken.items():
        found = ways.get(seq)
        if seq in forgotten:
            assert found is None
        elif found is not None:
            assert found[0] == stream_seq
            assert found[1] >= at_s or found[1] - at_s > -36_000


def test_a_time_is_never_earlier_than_it_was_and_at_most_a_second_later() -> None:
    ways = Ways()
    for seq, at_s in ((1, 100.0), (2, 100.4), (3, 161.0), (4, 99.0)):
        ways.take(seq, seq, at_s)
        found = ways.get(seq)
        assert found is not None
        assert at_s <= found[1] < at_s + 1.0 + (1.0 if at_s < 100 else 0.0)


def test_what_lies_at_or_above_a_sequence_is_found_in_order() -> None:
    ways = Ways()
    for seq in range(1, 3 * CHUNK):
        ways.take(seq, 10_000 + seq, 0.0)
    assert ways.at_or_above(10_000 + 3 * CHUNK - 2) == [3 * CHUNK - 2, 3 * CHUNK - 1]
    assert ways.at_or_above(0) == list(range(1, 3 * CHUNK))
    ways.drop(CHUNK - 1)
    assert ways.at_or_above(0)[0] == CHUNK


def test_a_stream_made_anew_gives_low_places_again() -> None:
    ways = Ways()
    ways.take(1, 5_000_000_000, 0.0)
    ways.take(2, 3, 1.0)
    assert ways.get(2) == (3, 1.0)
    # Out of reach of four bytes: forgotten, which costs a publish and nothing else.
    assert ways.get(1) is None


def test_a_hundred_thousand_take_less_than_a_megabyte() -> None:
    ways = Ways()
    for seq in range(100_000):
        ways.take(seq, seq, seq / 10)
    size = sum(
        chunk.places.itemsize * len(chunk.places) + chunk.later_s.itemsize * len(chunk.later_s)
        for chunk in ways._chunks.values()
    )
    assert size < 1 << 20
