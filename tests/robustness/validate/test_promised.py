"""What an accepted log promises, after an orderly end and after a kill -9 in the middle of a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from robustness.validate.promised import Promised, TornLogError, last_epoch, newest
from robustness.validate.report import Result, percentiles, table

STAMP = "2026-01-02T03:04:05Z"


def accepted(epoch: int, seq: int, *counters: int) -> dict[str, Any]:
    samples = [["m", counter, STAMP] for counter in counters]
    return {"epoch": epoch, "seq": seq, "kind": "samples", "base": 0, "samples": samples}


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "accepted.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text("".join(texts))
    return path


def counters(logs: Promised) -> list[int | None]:
    return [sample.counter for sample in logs.samples()]


def test_all_is_promised_where_nobody_was_killed(tmp_path: Path) -> None:
    logs = Promised([write(tmp_path, accepted(7, 1, 1, 2), accepted(7, 2, 3))])
    assert counters(logs) == [1, 2, 3]
    assert logs.ends() == {7: 2}


def test_of_a_killed_epoch_what_was_synced_or_acked_is_promised(tmp_path: Path) -> None:
    lines = [
        *(accepted(7, seq, seq) for seq in range(1, 7)),
        {"epoch": 7, "synced": 2},
        {"epoch": 7, "seq": 4, "acked": 90},
        accepted(8, 1, 7),
    ]
    path = write(tmp_path, *lines)
    logs = Promised([path], {7})
    assert counters(logs) == [1, 2, 4, 7]
    assert logs.ends() == {7: 2, 8: 1}
    assert sum(1 for _ in logs.batches()) == 7
    assert counters(Promised([path], {8})) == [1, 2, 3, 4, 5, 6]


def test_of_a_lost_disk_what_the_cloud_side_was_told_of_is_promised(tmp_path: Path) -> None:
    lines = [
        *(accepted(7, seq, seq) for seq in range(1, 7)),
        {"epoch": 7, "synced": 6},
        {"epoch": 7, "seq": 5, "acked": 9},
    ]
    path = write(tmp_path, *lines)
    assert counters(Promised([path], {7}, {7: 3})) == [1, 2, 3, 5]
    assert counters(Promised([path], {7}, {7: 0})) == [5]


def test_a_torn_line_is_what_a_kill_leaves_and_nothing_else_does(tmp_path: Path) -> None:
    torn = json.dumps(accepted(7, 2, 2))[:25]
    path = write(tmp_path, accepted(7, 1, 1), {"epoch": 7, "synced": 1}, torn, accepted(8, 1, 3))
    assert counters(Promised([path], {7})) == [1, 3]
    with pytest.raises(TornLogError):
        counters(Promised([path]))


@pytest.mark.parametrize("torn", ["", '{"epoch":9,"seq"'])
def test_the_newest_batch_is_found_from_the_end(torn: str, tmp_path: Path) -> None:
    lines = [*(accepted(7, seq, *range(200)) for seq in range(1, 500)), {"epoch": 7, "synced": 2}]
    path = write(tmp_path, *lines, torn)
    assert path.stat().st_size > 1 << 20
    assert newest(path) == (7, 499)
    assert last_epoch(path) == 7
    assert newest(write(tmp_path)) is None
    assert newest(tmp_path / "nothing") is None


def test_a_result_travels_and_is_summed() -> None:
    result = Result("s", 1, {"kill": 2}, 3, 4, 5, 1, 1, 1, 1, 1, [0.5, 1.5], {"resent": "3"})
    assert Result.decode(result.encode()) == result
    rows = table([result, result])
    assert rows[-2].startswith("| s | 1 | 2 × kill | 3 | 4 | 5 | 1 | 1 |")
    assert rows[-1].startswith("| **all 2** |  | **4 × fault** | **6** | **8** | **10** | **2** |")


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentiles([3.0]) == (3.0, 3.0, 3.0)
    assert percentiles([float(n) for n in range(1, 201)]) == (100.0, 198.0, 200.0)
