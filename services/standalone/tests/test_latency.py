"""The outside reader against a real table, and what is made of what it saw."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest

from cncmon_standalone.proof import latency, reader
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Window
from cncmon_standalone.proof.reader import Machine, Reader
from cncmon_standalone.proof.usage import Usage
from testkit.waiting import WAIT_S_MAX

BASE = datetime.now(UTC) + timedelta(hours=1)


def at(counter: int) -> datetime:
    return BASE + timedelta(milliseconds=100 * counter)


async def insert(connection: asyncpg.Connection, machine: str, *counters: int) -> None:
    for counter in counters:
        await connection.execute("SELECT ensure_partition('sensor_data', $1)", at(counter))
        await connection.execute(
            "INSERT INTO sensor_data (time, machine_id, extras) VALUES ($1, $2, $3)",
            *(at(counter), machine, json.dumps({"poll_counter": counter})),
        )


async def seen_of(looking: Reader, number: int) -> list[tuple[str, int]]:
    async with asyncio.timeout(WAIT_S_MAX):
        while len(looking.seen) < number:
            await asyncio.sleep(0.005)
    return [(name, counter) for name, counter, _ in looking.seen]


async def test_each_sample_is_seen_once_soon_after_it_is_stored(dsn: str, connection: asyncpg.Connection) -> None:
    stop = asyncio.Event()
    looking = Reader(dsn, ["a", "b"], 0.004, stop)
    running = asyncio.create_task(looking.run())
    await insert(connection, "a", 1, 2)
    await insert(connection, "b", 1)
    await insert(connection, "c", 1)
    assert sorted(await seen_of(looking, 3)) == [("a", 1), ("a", 2), ("b", 1)]
    await insert(connection, "a", 3)
    assert (await seen_of(looking, 4))[3] == ("a", 3)
    stop.set()
    await running


async def test_a_sample_that_comes_out_of_turn_is_seen_early_and_late(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "HOLE_S", 0.2)
    stop = asyncio.Event()
    looking = Reader(dsn, ["a"], 0.004, stop)
    running = asyncio.create_task(looking.run())
    await insert(connection, "a", 1)
    await seen_of(looking, 1)
    await insert(connection, "a", 3, 4)
    await seen_of(looking, 3)
    await insert(connection, "a", 2)  # the other worker was slower
    assert (await seen_of(looking, 4))[3] == ("a", 2)
    await insert(connection, "a", 7)
    await seen_of(looking, 5)
    await asyncio.sleep(0.3)  # the hole is left to the sweep by now
    await insert(connection, "a", 8)
    assert (await seen_of(looking, 6))[5] == ("a", 8)
    await insert(connection, "a", 6)  # redelivered
    assert (await seen_of(looking, 7))[6] == ("a", 6)
    await insert(connection, "a", 5)
    stop.set()
    await running  # looks once more
    assert looking.seen[-1][:2] == ("a", 5)


async def test_a_database_that_goes_away_is_waited_for(dsn: str, connection: asyncpg.Connection) -> None:
    stop = asyncio.Event()
    looking = Reader(dsn, ["a"], 0.004, stop)
    running = asyncio.create_task(looking.run())
    await insert(connection, "a", 1)
    await seen_of(looking, 1)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await insert(connection, "a", 2)
    assert await seen_of(looking, 2) == [("a", 1), ("a", 2)]
    stop.set()
    await running


def test_a_hole_that_never_fills_does_not_hold_the_look_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "HOLE_S", 1)
    machine = Machine(BASE)
    for counter in (1, 3, 4):
        assert machine.note(counter, at(counter))
    machine.give_holes_to_sweep(100.0)
    assert machine.floor == at(1)
    machine.give_holes_to_sweep(101.5)
    assert machine.floor == at(4)
    assert machine.missing == {2: at(1)}
    assert machine.oldest_missing(True) == at(1)
    assert not machine.note(3, at(3))
    assert machine.note(2, at(2))
    assert machine.missing == {}


def test_latency_is_from_the_answer_to_the_first_sight_and_hides_nothing(tmp_path: Path) -> None:
    polls, accepted, seen = tmp_path / "polls", tmp_path / "accepted", tmp_path / "seen"
    t_ns = [1_000_000_000_000 + counter * 100_000_000 for counter in range(12)]
    polls.write_text(
        "".join(
            json.dumps({"machine_id": "a", "counter": counter, "t_ns": t_ns[counter], "values": {}}) + "\n"
            for counter in range(12)
        )
    )
    taken = [["a", counter, at(counter).isoformat()] for counter in range(11)]  # 11 was answered, and not accepted
    accepted.write_text(json.dumps({"epoch": 1, "seq": 1, "samples": taken}) + "\n")
    # 0 lies before the window, 5 was never seen, 6 was seen twice
    sights = [("a", counter, t_ns[counter] + counter * 1_000_000) for counter in range(11) if counter != 5]
    seen.write_bytes(msgspec.json.encode([*sights, ("a", 6, t_ns[6] + 900_000_000)]))
    found = latency.measure(seen, AcceptedLog(accepted), polls, Window(t_ns[1], t_ns[11] + 1), ["a"])
    assert found == latency.Latency(p50=6.0, p99=10.0, max=10.0, samples=9, unseen=1)


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_nearest_rank(part: float, value: float) -> None:
    assert latency.percentile([float(n) for n in range(1, 101)], part) == value


def test_of_nothing_there_is_no_percentile() -> None:
    assert latency.percentile([], 0.99) is None


def test_probes_are_spread_over_all_machines() -> None:
    assert latency.probes_of([f"m{n:03d}" for n in range(100)])[:3] == ["m000", "m012", "m025"]
    assert latency.probes_of(["b", "a"]) == ["a", "b"]


def test_processor_time_adds_up_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage(list)
    usage._timeline = [(0, 0.0), (100, 1.0), (200, 1.0), (300, 3.0)]
    assert usage.cpu_s(50, 250) == pytest.approx(1.5)
    assert usage.cpu_s(0, 1000) == 3.0
