"""The edge's share of the stream in bytes: what counts, what frees it, what is no reason to stop."""

from cncmon_agent.share import StreamShare

FIRST = "2026-12-01T00:00:00+00:00"
SECOND = "2026-12-02T00:00:00+00:00"


def filled(bytes_max: int = 100) -> StreamShare:
    share = StreamShare()
    share.told(bytes_max, FIRST, 0)
    for stream_seq in range(1, 11):
        share.taken(2 * stream_seq, 10)
    return share


def test_it_is_full_at_its_bytes_and_has_room_again_well_below() -> None:
    share = filled()
    assert share.full
    share.told(100, FIRST, 5)
    assert (share.bytes, share.full, share.has_room) == (80, False, False)
    share.told(100, FIRST, 6)
    assert (share.bytes, share.full, share.has_room) == (70, False, True)


def test_without_a_share_nothing_is_full() -> None:
    for bytes_max in (0, -5):
        share = filled(bytes_max)
        assert share.bytes == 100
        assert not share.full
        assert share.has_room


def test_a_share_of_less_than_a_batch_lets_one_go_at_a_time() -> None:
    share = StreamShare()
    seen = [share.full]
    share.told(1, FIRST, 0)
    seen.append(share.full)
    share.taken(1, 10)
    seen.append(share.full)
    share.told(1, FIRST, 1)
    seen.append(share.full)
    assert seen == [False, False, True, False]
    assert share.has_room


def test_another_stream_holds_nothing_of_us() -> None:
    share = filled()
    share.told(100, SECOND, 0)
    assert (share.bytes, share.full) == (0, False)


def test_what_a_stream_that_went_back_has_lost_does_not_count() -> None:
    share = filled()
    share.taken(15, 10)
    assert share.bytes == 80
    share.told(100, FIRST, 14)
    assert share.bytes == 10
