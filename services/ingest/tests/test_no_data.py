"""no_data: a time that nothing is known of, apart from offline, which an edge reports; and when edges were silent."""

import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_ingest import migrate
from cncmon_ingest.edges import Edges
from cncmon_ingest.rollups import Rollups
from testkit.fixtures import on_both_servers

BEGAN = datetime(2026, 6, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return BEGAN + timedelta(seconds=second)


async def states(database: asyncpg.Connection, machine_id: str = "m1") -> list[tuple[float, float, str, bool]]:
    """Return the intervals: begin and end in seconds, state, undivided."""
    rows = await database.fetch("SELECT * FROM state_intervals WHERE machine_id = $1 ORDER BY from_time", machine_id)
    return [
        ((row["from_time"] - BEGAN).total_seconds(), (row["to_time"] - BEGAN).total_seconds(), *row[3:4], row[6])
        for row in rows
    ]


@on_both_servers
async def test_offline_of_before_is_divided_where_its_samples_are_and_marked_elsewhere(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw samples of before second 0 are gone. Then the machine runs, is off from 100 s to 130 s, and its edge is
    silent until 300 s: the program before called all of that offline. m2 was off, and nothing else, until 145 s.
    """
    database = await asyncpg.connect(postgres_dsn)
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await database.close()
    database = await asyncpg.connect(postgres_dsn)
    shipped = migrate.shipped()
    number = next(migration.number for migration in shipped if migration.name == "no_data")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "shipped", lambda: shipped[: number - 1])
        await migrate.migrate(database)
    samples = [("m1", second, "running") for second in (*range(100), *range(300, 400))]
    samples += [("m1", second, "offline") for second in range(100, 131, 5)]
    samples += [("m2", second, "offline") for second in range(100, 145, 5)]
    samples += [("m2", second, "running") for second in (*range(100), *range(145, 400))]
    await database.execute("SELECT ensure_partition('sensor_data', $1)", BEGAN)
    await database.copy_records_to_table(
        "sensor_data",
        records=[(at(second), name, 20.0 if state == "running" else None, state) for name, second, state in samples],
        columns=["time", "machine_id", "temperature", "machine_state"],
    )
    old = [
        *[("m1", -500, -50, "offline"), ("m1", -50, 100, "running"), ("m1", 100, 300, "offline")],
        *[("m1", 300, 415, "running"), ("m2", 100, 145, "offline"), ("m2", 145, 415, "running")],
    ]
    await database.executemany(
        "INSERT INTO state_intervals (machine_id, from_time, to_time, state) VALUES ($1, $2, $3, $4)",
        [(name, at(begin), at(end), state) for name, begin, end, state in old],
    )
    await database.execute("SELECT ensure_partition('rollup_1h', $1)", at(-500))
    zeros = [name for name in await _columns(database) if name.endswith(("_count", "_us")) or name == "samples"]
    await database.execute(
        f"INSERT INTO rollup_1h (time, machine_id, {', '.join(zeros)}) VALUES ($1, 'm1'{', 0' * len(zeros)})",
        BEGAN - timedelta(hours=1),
    )
    await database.execute("UPDATE storage SET dropped_to = $1 WHERE name = 'sensor_data'", BEGAN)
    assert await migrate.migrate(database) == len(shipped) - number + 1
    assert [one[3] for one in await states(database)] == [True] * 4
    rollups = Rollups(timedelta(seconds=15))
    while (await rollups.catch_up(database)).left:
        pass
    assert [one for one in await states(database) if one[2] != "running"] == [
        (-500, -50, "offline", True),
        (100, 145, "offline", False),
        (145, 300, "no_data", False),
    ]
    assert [one for one in await states(database, "m2") if one[2] != "running"] == [(100, 145, "offline", False)]
    rows = await database.fetch(
        "SELECT time, offline_us, no_data_us FROM rollup_1h WHERE machine_id = 'm1' ORDER BY time"
    )
    assert [(row["time"], row["offline_us"], row["no_data_us"]) for row in rows] == [
        (BEGAN - timedelta(hours=1), 0, None),
        (BEGAN, 45_000_000, 155_000_000),
    ]
    await database.close()


async def _columns(database: asyncpg.Connection) -> list[str]:
    rows = await database.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'rollup_1h'::regclass AND attnum > 0"
    )
    return [row["attname"] for row in rows]


def beat(boot: str, number: int | None) -> bytes:
    document = {"boot_id": boot, "time": BEGAN.isoformat(), "epochs": []}
    return json.dumps(document | ({} if number is None else {"beat": number})).encode()


@pytest.mark.parametrize(
    ("beats", "silences"),
    [
        pytest.param([(0, "a", 1), (5, "a", 2), (20, "a", 3)], [], id="missed two"),
        pytest.param([(0, "a", 1), (45, "a", 2)], [(0, 45)], id="stood still"),
        pytest.param([(0, "a", 1), (45, "b", 1), (50, "b", 2)], [(0, 45)], id="stopped and started"),
        pytest.param([(0, "a", 1), (3600, "a", 721)], [], id="we did not listen"),
        pytest.param([(0, "a", 1), (3600, "a", 100)], [(0, 3600)], id="stood still most of the time"),
        pytest.param([(0, "a", None), (45, "a", None)], [(0, 45)], id="an agent that does not count"),
        pytest.param([(45, "a", 2), (0, "a", 1)], [], id="an old one comes back"),
    ],
)
async def test_a_silence_of_an_edge_is_written_down(
    database: asyncpg.Connection, beats: list[tuple[int, str, int | None]], silences: list[tuple[int, int]]
) -> None:
    edges = Edges()
    for second, boot, number in beats:
        edges.take("hall.e1", beat(boot, number), at(second), second)
        await edges.write(database, second)
    rows = await database.fetch("SELECT * FROM edge_silences")
    assert [tuple(row) for row in rows] == [("hall", "e1", at(begin), at(end)) for begin, end in silences]


async def test_of_heartbeats_written_together_the_first_ends_a_silence(database: asyncpg.Connection) -> None:
    edges = Edges()
    edges.take("hall.e1", beat("a", 1), at(0), 0.0)
    await edges.write(database, 0.0)
    for second, boot in ((60, "c"), (45, "b")):
        edges.take("hall.e1", beat(boot, 1), at(second), 60.0)
    await edges.write(database, 60.0)
    rows = await database.fetch("SELECT from_time, to_time FROM edge_silences")
    assert [tuple(row) for row in rows] == [(at(0), at(45))]
