"""The validator against fabricated logs and a real table: it must catch what is lost, doubled or changed."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cncmon_standalone.errors import StandaloneError
from cncmon_standalone.proof import compare
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Verdict, Window, window_of

START = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)
START_NS = int(START.timestamp()) * 1_000_000_000
PERIOD_NS = 500_000_000
EPOCH = 4711
POLLS = 10
ANSWER: dict[str, Any] = {
    "temperature": 41.300000000000004,
    "spindle_speed": 2500.5,
    "machine_state": "running",
    "active_program_line": 12,
    "program": "O1001",
    "part_count": 7,
    "door_open": False,
    "tool_wear_percent": 12.5,
}


def at(counter: int) -> datetime:
    return START + timedelta(milliseconds=500 * counter, microseconds=1234)


class World:
    """What the machine answered, what the agent accepted, and what the table holds; all in order to begin with."""

    def __init__(self, folder: Path, connection: asyncpg.Connection) -> None:
        self._folder = folder
        self._connection = connection
        self.answered = {counter: {**ANSWER, "poll_counter": counter} for counter in range(1, POLLS + 1)}
        self.batches: list[dict[str, Any]] = [
            {
                "epoch": EPOCH,
                "seq": seq,
                "kind": "samples",
                "base": 2 * (seq - 1),
                "samples": [["mill-01", counter, at(counter).isoformat()] for counter in (2 * seq - 1, 2 * seq)],
            }
            for seq in range(1, POLLS // 2 + 1)
        ]
        self.rows: list[tuple[datetime, dict[str, Any]]] = [
            (at(counter), copy.deepcopy(values)) for counter, values in self.answered.items()
        ]
        self.sql: list[str] = []
        self.acked: list[int] = [batch["seq"] for batch in self.batches]

    async def judge(self, *, promised_only: bool = False) -> Verdict:
        polls, accepted = self._folder / "polls.jsonl", self._folder / "accepted.jsonl"
        polls.write_text(
            "".join(
                json.dumps({"machine_id": "mill-01", "counter": c, "t_ns": START_NS + c * PERIOD_NS, "values": v})
                + "\n"
                for c, v in self.answered.items()
            )
        )
        lines = [*self.batches, *({"epoch": EPOCH, "seq": seq, "acked": 100 + seq} for seq in self.acked)]
        accepted.write_text("".join(json.dumps(line) + "\n" for line in lines))
        await self._connection.execute(
            "INSERT INTO machines (machine_id, site, edge) VALUES ('mill-01', 'default', 'edge') ON CONFLICT DO NOTHING"
        )
        for time, values in self.rows:
            await self._insert(time, values)
        for statement in self.sql:
            await self._connection.execute(statement)
        window = window_of(polls, START_NS + (POLLS + 1) * PERIOD_NS, PERIOD_NS, 1)
        return await compare.compare(
            self._connection,
            AcceptedLog(accepted, promised_only=promised_only),
            polls,
            window,
            START - timedelta(days=1),
        )

    async def _insert(self, time: datetime, values: dict[str, Any]) -> None:
        columns = {name: value for name, value in values.items() if name in compare._COLUMNS}
        extras = {name: value for name, value in values.items() if name not in compare._COLUMNS}
        names = ["time", "machine_id", "extras", *columns]
        marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
        await self._connection.execute("SELECT ensure_partition('sensor_data', $1)", time)
        await self._connection.execute(
            f"INSERT INTO sensor_data ({', '.join(names)}) VALUES ({marks})",
            *(time, "mill-01", json.dumps(extras) if extras else None, *columns.values()),
        )


@pytest.fixture
async def world(tmp_path: Path, connection: asyncpg.Connection) -> World:
    return World(tmp_path, connection)


async def test_all_in_order(world: World) -> None:
    verdict = await world.judge()
    assert verdict.holds
    assert (verdict.answered, verdict.acquired, verdict.accepted, verdict.stored) == (POLLS, POLLS, POLLS, POLLS)
    assert verdict.examples == []


async def test_a_lost_sample_is_caught(world: World) -> None:
    del world.rows[4]
    verdict = await world.judge()
    assert (verdict.lost, verdict.duplicated, verdict.mismatched) == (1, 0, 0)
    assert verdict.examples == [
        f"lost: mill-01 poll 5 at {at(5).isoformat()} (epoch {EPOCH}, seq 3, frame 0)",
    ]


async def test_a_doubled_sample_is_caught(world: World) -> None:
    world.rows.append(copy.deepcopy(world.rows[2]))
    verdict = await world.judge()
    assert (verdict.lost, verdict.duplicated, verdict.mismatched) == (0, 1, 0)
    assert "duplicated: mill-01 poll 3" in verdict.examples[0]


async def test_a_sample_stored_again_under_another_time_is_caught_as_doubled(world: World) -> None:
    world.rows.append((at(3) + timedelta(microseconds=1), copy.deepcopy(world.rows[2][1])))
    assert (await world.judge()).duplicated == 1


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.update(temperature=41.31), "temperature is 41.31, the machine answered 41.3"),
        (lambda row: row.update(temperature=None), "temperature is None"),
        (lambda row: row.update(machine_state="idle"), "machine_state is 'idle', the machine answered 'running'"),
        (lambda row: row.update(active_program_line=13), "active_program_line is 13"),
        (lambda row: row.update(program="O1002"), "program is 'O1002'"),
        (lambda row: row.update(door_open=0), "door_open is 0, the machine answered False"),
        (lambda row: row.pop("tool_wear_percent"), "tool_wear_percent is None"),
        (lambda row: row.update(x_pos_mm=1.0), "the machine answered no x_pos_mm"),
        (lambda row: row.update(surprise=1), "the machine answered no surprise"),
        (lambda row: row.update(poll_counter=99), "no poll answered this"),
        (lambda row: row.pop("poll_counter"), "no poll answered this"),
    ],
)
async def test_a_changed_field_is_caught(world: World, change: Change, said: str) -> None:
    change(world.rows[5][1])
    verdict = await world.judge()
    assert verdict.mismatched == 1
    assert any(said in example for example in verdict.examples), verdict.examples


async def test_a_changed_time_is_caught_as_lost(world: World) -> None:
    world.rows[5] = (world.rows[5][0] + timedelta(microseconds=1), world.rows[5][1])
    assert (await world.judge()).lost == 1


async def test_the_last_bits_of_a_float_may_differ(world: World) -> None:
    world.rows[5][1]["temperature"] = 41.3
    world.rows[5][1]["spindle_speed"] = 2500.5 * (1 + 5e-10)
    assert (await world.judge()).holds


async def test_a_dead_letter_is_no_loss(world: World) -> None:
    del world.rows[4]  # poll 5: seq 3, frame 0
    world.sql.append(_dead(3, 0))
    verdict = await world.judge()
    assert verdict.holds
    assert verdict.dead_lettered == 1


async def test_a_dead_message_excuses_all_of_its_samples(world: World) -> None:
    del world.rows[4:6]
    world.sql.append(_dead(3, -1))
    assert (await world.judge()).holds


async def test_a_dead_letter_excuses_no_other_sample(world: World) -> None:
    del world.rows[4]
    world.sql.append(_dead(3, 1))
    assert (await world.judge()).lost == 1


async def test_a_replayed_dead_letter_excuses_nothing(world: World) -> None:
    del world.rows[4]
    world.sql += [_dead(3, 0), "UPDATE dead_letters SET state = 'replayed'"]
    assert (await world.judge()).lost == 1


async def test_a_declared_gap_is_no_loss(world: World) -> None:
    del world.rows[4:8]
    world.sql.append(
        f"INSERT INTO gaps (epoch, seq_from, seq_to, samples, reason) VALUES ({EPOCH}, 3, 4, 4, 'buffer_full')"
    )
    verdict = await world.judge()
    assert verdict.holds
    assert verdict.gaps == 4


def _dead(seq: int, frame: int) -> str:
    return (
        "INSERT INTO dead_letters (identity, sha256, frame, reason, detail, subject, stream_seq, headers, payload) "
        f"VALUES ('{EPOCH}:{seq}', '\\x00', {frame}, 'invalid_field', '', 'CNC_DATA.default.edge', 1, '{{}}', '')"
    )


async def test_an_offline_machine_has_samples_that_no_poll_answered(world: World) -> None:
    offline = at(20)
    world.batches.append({"epoch": EPOCH, "seq": 6, "samples": [["mill-01", None, offline.isoformat()]]})
    world.rows.append((offline, {"machine_state": "offline"}))
    verdict = await world.judge()
    assert verdict.holds
    assert (verdict.accepted, verdict.acquired) == (POLLS + 1, POLLS)


async def test_a_lost_or_doubled_offline_sample_is_caught(world: World) -> None:
    for number, rows in ((1, 0), (2, 2)):
        offline = at(20 + number)
        world.batches.append({"epoch": EPOCH, "seq": 5 + number, "samples": [["mill-01", None, offline.isoformat()]]})
        world.rows += [(offline, {"machine_state": "offline"})] * rows
    verdict = await world.judge()
    assert (verdict.lost, verdict.duplicated) == (1, 1)


async def test_an_offline_sample_with_values_is_an_invention(world: World) -> None:
    world.rows.append((at(20), {"machine_state": "offline", "temperature": 20.0}))
    verdict = await world.judge()
    assert verdict.mismatched == 1
    assert "offline, and yet it has temperature" in verdict.examples[0]


async def test_of_a_killed_agent_only_acknowledged_batches_count(world: World) -> None:
    del world.rows[8:]
    world.acked.remove(5)
    assert (await world.judge()).lost == 2
    world.rows.clear()  # the table is filled already
    verdict = await world.judge(promised_only=True)
    assert verdict.lost == 0
    assert verdict.accepted == POLLS - 2


async def test_rows_of_an_earlier_run_are_left_alone(world: World) -> None:
    world.rows.append((START - timedelta(days=2), {**ANSWER, "poll_counter": 1}))
    assert (await world.judge()).holds


async def test_examples_stay_few(world: World) -> None:
    world.rows = [*world.rows, *world.rows]
    verdict = await world.judge()
    assert verdict.duplicated == POLLS
    assert len(verdict.examples) == compare.EXAMPLES_MAX


async def test_groups_of_machines_bound_the_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SAMPLES_AT_ONCE_MAX", 1)
    world.batches.append({"epoch": EPOCH, "seq": 6, "samples": [["lathe-02", 1, at(1).isoformat()]]})
    verdict = await world.judge()
    assert verdict.lost == 1
    assert verdict.accepted == POLLS + 1


def _log(path: Path, offsets_ms: dict[str, list[float]]) -> Path:
    polls = sorted((ms, name) for name, times in offsets_ms.items() for ms in times)
    path.write_text(
        "".join(
            json.dumps({"machine_id": name, "counter": 1, "t_ns": START_NS + round(ms * 1e6), "values": {}}) + "\n"
            for ms, name in polls
        )
    )
    return path


def test_the_window_begins_when_the_last_machine_has_answered(tmp_path: Path) -> None:
    early = [100.0 + 500 * n + (1 if n % 2 else -1) for n in range(20)]
    late = [2350.0 + 500 * n for n in range(16)]
    window = window_of(_log(tmp_path / "p", {"a": early, "b": late}), START_NS + 10_000_000_000, PERIOD_NS, 2)
    assert window.start_ns == START_NS + 2_350_000_000
    assert window.seconds == 7.65
    # a: 2600 … 9600, b: 2350 … 9850
    assert window.due == 15 + 16
    assert window.answered == 2


def test_polls_that_were_left_out_are_still_due(tmp_path: Path) -> None:
    times = [100.0 + 500 * n for n in range(20) if n not in (5, 6, 11)]
    window = window_of(_log(tmp_path / "p", {"a": times}), START_NS + 10_000_000_000, PERIOD_NS, 1)
    assert window.due == 20


def test_a_machine_that_never_answers_is_due_all_the_same(tmp_path: Path) -> None:
    times = [100.0 + 500 * n for n in range(20)]
    window = window_of(_log(tmp_path / "p", {"a": times}), START_NS + 10_000_000_000, PERIOD_NS, 2)
    assert window == Window(START_NS + 100_000_000, START_NS + 10_000_000_000, 20 + 19, 1)


def test_a_torn_accepted_log_is_read_for_a_killed_agent_only(tmp_path: Path) -> None:
    whole = json.dumps({"epoch": 2, "seq": 1, "samples": [["m", 1, at(1).isoformat()]]})
    acked = json.dumps({"epoch": 2, "seq": 1, "acked": 9})
    path = tmp_path / "accepted.jsonl"
    path.write_text('{"epoch": 1, "seq": 7, "samp' + whole + "\n" + acked + "\n" + '{"epoch": 2, "se')
    log = AcceptedLog(path, promised_only=True)
    assert [(sample.machine_id, sample.counter) for sample in log.samples()] == [("m", 1)]
    with pytest.raises(StandaloneError, match=r"accepted\.jsonl:1"):
        list(AcceptedLog(path).samples())
