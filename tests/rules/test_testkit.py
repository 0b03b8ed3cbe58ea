"""The tools that the other tests stand on: waits, the clock that jumps, the order, what `make check` chooses."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from cncmon_ingest.migrate import migrate
from testkit import check, durations, waiting
from testkit.fixtures import Databases
from testkit.order import shuffled
from testkit.servers import Postgres
from testkit.virtual_time import VirtualLoop
from testkit.waiting import until, until_blocking
from testkit.work import counting

AGENT = "services/agent"


# --- waits ----------------------------------------------------------------------------------------------------------


async def test_a_wait_returns_what_it_waited_for() -> None:
    numbers = iter((0, 0, 7))
    assert await until(lambda: next(numbers)) == 7

    async def asked() -> str:
        return "there"

    assert await until(asked) == "there"
    assert until_blocking(lambda: "there") == "there"


@pytest.mark.virtual_time
async def test_a_wait_that_ends_says_what_it_saw_last() -> None:
    stored, wanted = [1, 2, 3], 5
    with pytest.raises(AssertionError, match=r"after 240 s not: .*len\(stored\) >= wanted.*wanted=5; last: False"):
        await until(lambda: len(stored) >= wanted, every_s=1)
    with pytest.raises(AssertionError, match="not: 5 stored, but 3; last: None"):
        await until(lambda: None, what=lambda: f"{wanted} stored, but {len(stored)}", every_s=1)
    with pytest.raises(AssertionError, match=r"after 1 s not: a file; last: \(\)"):
        until_blocking(lambda: (), 1, what="a file")


async def test_a_condition_that_fails_ends_the_wait_at_once() -> None:
    def died() -> bool:
        raise AssertionError("the agent has ended")

    with pytest.raises(AssertionError, match="the agent has ended"):
        await until(died)


@pytest.mark.virtual_time
async def test_looks_that_take_long_are_fewer() -> None:
    """Or looking at a table that grows would take the time in which it grows."""
    looks = iter(range(6))

    def look() -> bool:
        time.sleep(0.02)
        return next(looks) == 5

    began_s = time.monotonic()
    assert until_blocking(look, every_s=0.001)
    assert time.monotonic() - began_s >= 5 * 0.02 / waiting.LOOKS_SHARE


def test_a_wait_ends_before_the_test_is_ended(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("timeout")) / 2 > waiting.WAIT_S_MAX


# --- the clock that jumps -------------------------------------------------------------------------------------------


@pytest.mark.virtual_time
async def test_hours_pass_at_once_and_exactly() -> None:
    began_s, wall_s = time.monotonic(), time.time()
    await asyncio.sleep(7200)
    assert time.monotonic() - began_s == pytest.approx(7200, abs=0.001)
    assert time.time() - wall_s == pytest.approx(7200, abs=0.001)
    assert asyncio.get_running_loop().time() == pytest.approx(time.monotonic(), abs=0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()


@pytest.mark.virtual_time
async def test_time_stands_still_while_a_thread_works() -> None:
    released = threading.Event()
    began_s = time.monotonic()
    working = asyncio.create_task(asyncio.to_thread(released.wait, 30))
    threading.Timer(0.05, released.set).start()
    assert await working
    assert time.monotonic() - began_s < 0.05, "of looks at the clock alone"


@pytest.mark.virtual_time
async def test_what_was_sent_is_there_before_time_passes() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    for _ in range(50):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"ping")
        async with asyncio.timeout(0.001):
            assert await reader.readexactly(4) == b"ping"
        writer.close()
    server.close()


def test_the_real_clock_is_back_afterwards() -> None:
    VirtualLoop().close()
    assert time.monotonic.__module__ == "time"
    assert time.sleep.__module__ == "time"


def test_work_is_counted_the_same_each_time() -> None:
    def once(number: int) -> int:
        with counting() as work:
            sum(one for one in range(number) if one % 2)
        return work.steps

    assert once(1000) == once(1000)
    assert 1000 <= once(1000) < once(2000) < 10_000


# --- the order ------------------------------------------------------------------------------------------------------


def items(*nodeids: str, in_order: bool = False) -> list[Any]:
    def closest(name: str) -> object:
        return in_order if name == "in_order" and in_order else None

    return [SimpleNamespace(nodeid=nodeid, get_closest_marker=closest) for nodeid in nodeids]


def test_a_seed_gives_one_order_whatever_else_is_run() -> None:
    ids = [f"{file}.py::test_{number}" for file in ("a", "b", "c") for number in range(5)]
    orders = {tuple(item.nodeid for item in shuffled(items(*ids), seed)) for seed in range(20)}
    assert len(orders) > 10
    assert all(sorted(order) == ids for order in orders)
    (alone,) = {tuple(i.nodeid for i in shuffled(items(*ids[:5]), 3))}
    assert alone == tuple(nodeid for nodeid in (i.nodeid for i in shuffled(items(*ids), 3)) if nodeid < "b")
    # A module stays together: its servers are started once.
    files = [item.nodeid[0] for item in shuffled(items(*ids), 3)]
    assert sorted(files, key=files.index) == files


def test_a_story_keeps_its_order() -> None:
    ids = [f"a.py::test_{number}" for number in range(9)]
    assert [item.nodeid for item in shuffled(items(*ids, in_order=True), 1)] == ids


def test_what_takes_long_begins_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "known", lambda: {"a.py": 1.0, "b.py": 99.0})
    found = durations.longest_first(items("a.py::test_1", "new.py::test_1", "b.py::test_1", "b.py::test_2"))
    assert [item.nodeid for item in found] == ["b.py::test_1", "b.py::test_2", "new.py::test_1", "a.py::test_1"]


# --- make check -----------------------------------------------------------------------------------------------------


def test_the_nearest_tests_of_a_change_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "known", lambda: {f"{AGENT}/tests/test_pace.py": 5.0})
    monkeypatch.setattr(check, "UNKNOWN_S", 1.0)
    changed = [f"{AGENT}/src/cncmon_agent/pace.py", f"{AGENT}/tests/test_ticks.py"]
    taken, left = check.chosen(changed)
    assert taken[0] == f"{AGENT}/tests/test_ticks.py", "a changed test itself"
    assert taken.index(f"{AGENT}/tests/test_pace.py") < taken.index(f"{AGENT}/tests/test_agent.py")
    assert taken.index(f"{AGENT}/tests/test_agent.py") < taken.index("tests/integration/test_edge_running.py")
    assert not any(file.startswith("services/ingest/") for file in (*taken, *left))


def test_what_does_not_fit_the_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "known", dict)
    monkeypatch.setattr(check, "UNKNOWN_S", check.TESTS_S_MAX / 3)
    taken, left = check.chosen([f"{AGENT}/src/cncmon_agent/pace.py"])
    assert len(taken) == 3
    assert f"{AGENT}/tests/test_pace.py" in taken
    assert left


def test_a_change_that_is_no_code_means_the_tests_of_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "known", dict)
    monkeypatch.setattr(check, "UNKNOWN_S", 0.1)
    taken, _ = check.chosen(["services/ingest/src/cncmon_ingest/migrations/0001_base.sql", "docs/delivery.md"])
    assert "services/ingest/tests/test_migrate.py" in taken
    assert "tests/rules/test_docs.py" in taken


# --- databases that are lent again ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lent_again"),
    [
        ("INSERT INTO machines (machine_id, site, edge) VALUES ('m', 's', 'e')", True),
        ("SELECT ensure_partition('sensor_data', '2001-01-01')", True),
        (
            "DO $$ BEGIN EXECUTE format('DROP TABLE %s',"
            " (SELECT min(oid::regclass::text) FROM pg_class WHERE relispartition AND relkind = 'r')); END $$",
            False,
        ),
        ("DROP SCHEMA public CASCADE; CREATE SCHEMA public", False),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", False),
        ("ALTER TABLE machines ADD COLUMN own int", False),
    ],
    ids=["rows", "a partition", "no partition", "a re-created schema", "rights", "a column"],
)
async def test_a_database_is_lent_again_only_as_it_was_migrated(
    postgres_server: Postgres, change: str, lent_again: bool
) -> None:
    databases = Databases(postgres_server)
    lent = await databases.take()
    connection = await asyncpg.connect(lent)
    await connection.execute(change)
    if "CREATE SCHEMA" in change:
        await migrate(connection)
    await connection.close()
    await databases.give_back(lent)
    next_one = await databases.take()
    assert (next_one == lent) is lent_again
    connection = await asyncpg.connect(next_one)
    assert await connection.fetchval("SELECT count(*) FROM machines") == 0
    assert await connection.fetchval("SELECT to_regclass('sensor_data_p20010101')") is None
    assert await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'public' AND grantee = 0)"
    )
    await connection.close()
    admin = await asyncpg.connect(postgres_server.dsn)
    await admin.execute(f"DROP DATABASE {next_one.rsplit('/', 1)[1]}")
    await admin.close()
