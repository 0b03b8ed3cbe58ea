"""`cncmon db` and `cncmon dlq` on a database that is given by its URL: what they print, and their exit status."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_ingest import migrate
from testkit.ingest import frame
from testkit.waiting import WAIT_S_MAX, until

COMMAND = [sys.executable, "-m", "cncmon_standalone.cli"]


def cncmon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)


async def bury(connection: asyncpg.Connection, reason: str, edge: str, payload: bytes, number: int) -> None:
    await connection.execute(
        "INSERT INTO dead_letters (identity, sha256, frame, reason, detail, subject, stream_seq, headers, payload) "
        "VALUES ($1, '', 0, $2, 'said so', $3, $4, '{}', $5)",
        *(f"1:{number}", reason, f"CNC_DATA.hall.{edge}", number, payload),
    )


async def test_dead_letters_by_reason_edge_and_age(dsn: str, connection: asyncpg.Connection) -> None:
    for number in range(1, 4):
        await bury(connection, "malformed_json", "e1", b"{", number)
    await bury(connection, "future", "e2", frame(1), 4)
    await connection.execute("UPDATE dead_letters SET created = now() - interval '2 h' WHERE stream_seq = 1")

    listed = cncmon("dlq", "ls", "--dsn", dsn, "--limit", "1")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "CNC_DATA.hall.e2, frame 0" in listed.stdout
    assert "       3 malformed_json  3 bytes" in listed.stdout
    assert "       1 future " in listed.stdout
    counts = json.loads(cncmon("dlq", "ls", "--dsn", dsn, "--counts", "--json", "--since", "1h").stdout)
    assert [(one["reason"], one["letters"]) for one in counts] == [("malformed_json", 2), ("future", 1)]
    assert cncmon("dlq", "ls", "--dsn", dsn, "--edge", "hall/e9").stdout == "None of these.\n"

    # What can be stored is stored; the rest says why, and the exit status that there is a rest.
    again = cncmon("dlq", "replay", "--dsn", dsn, "--edge", "hall/e2")
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == "1 of 1 replayed, 1 samples stored."
    assert await connection.fetchval("SELECT count(*) FROM sensor_data") == 1
    refused = cncmon("dlq", "replay", "--dsn", dsn, "--all", "--json")
    assert refused.returncode == 1
    assert len(json.loads(refused.stdout)) == 3

    unsaid = cncmon("dlq", "drop", "--dsn", dsn, "--reason", "malformed_json")
    assert unsaid.returncode == 2
    assert "gives up 3 dead letters for good. Say so: --yes" in unsaid.stderr
    given_up = cncmon("dlq", "drop", "--dsn", dsn, "--reason", "malformed_json", "--yes", "--json")
    assert (given_up.returncode, json.loads(given_up.stdout)) == (0, {"dropped": 3})
    assert cncmon("dlq", "drop", "--dsn", dsn, "1", "--yes").returncode == 1, "not dead any more"
    assert "No dead letters" in cncmon("dlq", "ls", "--dsn", dsn).stdout
    assert "3 dropped malformed_json" in cncmon("dlq", "ls", "--dsn", dsn, "--all").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("drop",), "say which: cncmon dlq drop ID"),
        (("replay", "1", "--all"), "say which"),
        (("replay", "--all", "--reason", "future"), "say which"),
        (("ls", "--edge", "hall"), "'hall' is no edge: write it as SITE/EDGE"),
        (("ls", "--since", "ever"), "'ever' is no duration"),
    ],
)
def test_what_can_not_be_meant(arguments: tuple[str, ...], said: str) -> None:
    done = cncmon("dlq", *arguments, "--dsn", "postgresql://nobody@127.0.0.1:9/none")
    assert done.returncode == 2
    assert said in done.stderr


async def test_reconcile_of_one_edge_and_with_a_replay(dsn: str, connection: asyncpg.Connection) -> None:
    for epoch, edge in ((1, "e1"), (2, "e2")):
        await connection.execute(
            "INSERT INTO watermarks (epoch, site, edge, seq, batches_stored, samples_stored, base) "
            "VALUES ($1, 'hall', $2, 1, $3, 1, 1)",
            *(epoch, edge, epoch),
        )
    await bury(connection, "future", "e1", frame(1), 1)
    assert cncmon("reconcile", "--dsn", dsn).returncode == 1
    one = cncmon("reconcile", "--dsn", dsn, "--edge", "hall/e1", "--replay")
    assert one.returncode == 0
    assert "1 batches accepted in 1 epochs" in one.stdout
    assert await connection.fetchval("SELECT count(*) FROM sensor_data") == 1


def test_reading_the_stream_again_needs_somebody_who_does_it(dsn: str) -> None:
    done = cncmon("reconcile", "--dsn", dsn, "--reread")
    assert done.returncode == 1
    assert "no ingest worker has begun to read the stream again within 15 s: is one running?" in done.stderr


async def test_size_counts_what_was_never_analysed(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO machines (machine_id, site, edge) VALUES ('m1', 'hall', 'e1')")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    tables = json.loads(cncmon("db", "size", "--dsn", dsn, "--json").stdout)["tables"]
    assert next(one for one in tables if one["name"] == "machines")["rows"] == 1


async def test_size_is_of_all_tables_and_of_a_million_samples(dsn: str, connection: asyncpg.Connection) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1000)
    rows = [(began + timedelta(seconds=second), "m1", float(second)) for second in range(1001)]
    await connection.copy_records_to_table("sensor_data", records=rows, columns=["time", "machine_id", "temperature"])
    await connection.execute("INSERT INTO machines (machine_id, site, edge) VALUES ('m1', 'hall', 'e1')")
    await connection.execute("ANALYZE")
    told = json.loads(cncmon("db", "size", "--dsn", dsn, "--json").stdout)
    table = next(one for one in told["tables"] if one["name"] == "sensor_data")
    assert table["rows"] == 1001
    assert table["bytes"] > table["index_bytes"] > 0
    assert told["samples_a_second"] == pytest.approx(1.0, rel=0.01)
    assert told["bytes_a_sample"] == pytest.approx(sum(one["bytes"] for one in told["tables"]) / 1001)
    assert {"ledger", "watermarks", "dead_letters", "gaps"} <= {one["name"] for one in told["tables"]}
    printed = cncmon("db", "size", "--dsn", dsn)
    assert printed.returncode == 0
    assert "A million samples take" in printed.stdout
    assert "1.0 samples a second came: a year like that takes" in printed.stdout


def todo(dsn: str) -> dict[str, str]:
    done = cncmon("db", "check", "--dsn", dsn, "--json")
    found = {one["check"]: one["todo"] for one in json.loads(done.stdout) if one["todo"]}
    assert done.returncode == (1 if found else 0)
    return found


async def test_check_says_what_to_do(dsn: str, connection: asyncpg.Connection) -> None:
    # The tests' server does not wait for its disk.
    assert todo(dsn) == {
        "durability": "set fsync = on: a power cut can lose acknowledged samples and corrupt the whole database"
    }
    printed = cncmon("db", "check", "--dsn", dsn).stdout
    assert f"version {migrate.LATEST}, this program knows {migrate.LATEST}" in printed
    assert "may read and write" in printed

    database = await connection.fetchval("SELECT current_database()")
    await connection.execute("CREATE ROLE reader LOGIN PASSWORD 'a'")
    await connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    await connection.execute("UPDATE schema_migrations SET number = 99, oldest = 99 WHERE number = $1", migrate.LATEST)
    try:
        found = todo(f"postgresql://reader:a@{dsn.partition('@')[2]}")
        assert found["tables"] == "this program is too old for the tables: use a newer one"
        assert found["rights"].startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letter_totals, dead_letters, ")
        refused = cncmon("db", "upgrade", "--dsn", dsn)
        assert refused.returncode == 1
        assert "use a newer version" in refused.stderr
        await connection.execute("UPDATE schema_migrations SET number = 98 WHERE number = 99")
        await connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
        assert todo(dsn)["rights"] == "set default_transaction_read_only = off"
    finally:
        await connection.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        await connection.execute(
            "UPDATE schema_migrations SET number = $1, oldest = 0 WHERE number > $1", migrate.LATEST
        )
        await connection.execute("DROP OWNED BY reader; DROP ROLE reader")


async def test_check_names_each_setting_that_can_lose_what_was_acknowledged(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """`remote_write` is on no disk yet; `full_page_writes` is the server's, and a reload is enough."""
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = remote_write')
    await connection.execute("ALTER SYSTEM SET full_page_writes = off")
    await connection.execute("SELECT pg_reload_conf()")
    try:
        await until(lambda: connection.fetchval("SELECT current_setting('full_page_writes') = 'off'"))
        found = todo(dsn)["durability"]
        assert [one.split(":")[0] for one in found.split("; ")] == [
            "set fsync = on",
            "set full_page_writes = on",
            "set synchronous_commit = on",
        ]
    finally:
        await connection.execute("ALTER SYSTEM RESET full_page_writes")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(f'ALTER DATABASE "{database}" RESET synchronous_commit')


async def test_upgrade_makes_what_is_missing_once(dsn: str, connection: asyncpg.Connection) -> None:
    name = "fresh"
    await connection.execute(f"CREATE DATABASE {name}")
    fresh = dsn.rpartition("/")[0] + f"/{name}"
    try:
        missing = cncmon("dlq", "ls", "--dsn", fresh)
        assert missing.returncode != 0
        assert "See: cncmon db upgrade" in missing.stderr
        first = cncmon("db", "upgrade", "--dsn", fresh)
        assert (first.returncode, first.stdout) == (0, f"Tables brought from version 0 to {migrate.LATEST}.\n")
        again = json.loads(cncmon("db", "upgrade", "--dsn", fresh, "--json").stdout)
        assert again == {"before": migrate.LATEST, "applied": 0, "now": migrate.LATEST}
        assert "tables" not in todo(fresh)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_rollups_can_be_computed_again(dsn: str, connection: asyncpg.Connection) -> None:
    began = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=6)
    rows = [(began + timedelta(minutes=minute), "m1", 1.0) for minute in range(240)]
    await connection.execute(
        "SELECT ensure_partition('sensor_data', time) FROM unnest($1::timestamptz[]) AS time", [began]
    )
    await connection.copy_records_to_table("sensor_data", records=rows, columns=["time", "machine_id", "temperature"])
    await connection.execute("INSERT INTO machines (machine_id, site, edge) VALUES ('m1', 'hall', 'e1')")
    part = cncmon("db", "recompute", "--dsn", dsn, "--since", "4h", "--json")
    assert part.returncode == 0
    assert 0 < json.loads(part.stdout)["marked"] < 5
    whole = cncmon("db", "recompute", "--dsn", dsn)
    assert (whole.returncode, whole.stdout) == (0, "5 hours of machines were computed again.\n")
    assert await connection.fetchval("SELECT sum(samples) FROM rollup_1h") == 240
    await connection.execute(
        "INSERT INTO dirty_ranges (machine_ids, from_time, to_time, failure) VALUES ('{m1}', $1, $2, $3)",
        *(began, began + timedelta(seconds=10), "division by zero"),
    )
    assert todo(dsn)["rollups"] == "mend that, then run: cncmon db recompute --failed"
    again = cncmon("db", "recompute", "--failed", "--dsn", dsn, "--json")
    assert json.loads(again.stdout) == {"marked": 1, "failed": 0}
    assert "rollups" not in todo(dsn)


async def test_whose_machines_are_and_handing_them_over(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO machines VALUES ('m1', 'hall', 'e1'), ('m2', 'hall', 'e1'), ('m3', '', '')")
    await connection.execute(
        "INSERT INTO machine_owners SELECT machine_id, site, edge, '-infinity' FROM machines WHERE site <> ''"
    )
    at = "2026-11-30T06:00:00Z"
    done = cncmon("machines", "hand-over", "m1", "m9", "--to", "yard/e9", "--from", at, "--dsn", dsn)
    assert done.returncode == 1
    assert "1 machines: their samples from 2026-11-30 06:00:00 UTC on are taken from yard/e9." in done.stdout
    assert "m9: no sample of it was ever stored" in done.stdout
    assert "cncmon dlq replay --reason foreign_machine" in done.stdout
    listed = cncmon("machines", "ls", "--dsn", dsn).stdout.splitlines()
    # Tests before this one may have stored machines of their own.
    assert [line for line in listed if line.startswith(("m1 ", "m2 "))] == [
        "m1  hall/e1  always",
        "m1  yard/e9  since 2026-11-30 06:00:00 UTC",
        "m2  hall/e1  always",
    ]
    # All of an edge, from the beginning: what was recorded before is no more.
    done = cncmon(
        "machines", "hand-over", "--edge", "yard/e9", "--to", "dock/e2", "--from", "beginning", "--json", "--dsn", dsn
    )
    assert (done.returncode, json.loads(done.stdout)) == (
        0, {"machines": ["m1"], "unknown": [], "site": "dock", "edge": "e2", "from": None}
    )  # fmt: skip
    rows = json.loads(cncmon("machines", "ls", "m1", "--json", "--dsn", dsn).stdout)
    assert rows == [{"machine_id": "m1", "site": "dock", "edge": "e2", "from_time": None}]
    assert cncmon("machines", "hand-over", "m3", "--to", "dock/e2", "--dsn", dsn).returncode == 0
    (row,) = await connection.fetch(
        "SELECT from_time, now() - from_time AS age FROM machine_owners WHERE machine_id = 'm3'"
    )
    assert timedelta(0) <= row["age"] < timedelta(minutes=5), "from now on where nothing is said"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "hall/e1"), "say which"),
        (("m1", "--edge", "hall/e1", "--to", "hall/e2"), "say which"),
        (("m1", "--to", "hall"), "'hall' is no edge: write it as SITE/EDGE"),
        (("m1", "--to", "Hall/e 1"), "site 'Hall'"),
        (("m1", "--to", "hall/e1", "--from", "6 o'clock"), "is no time"),
        (("m1", "--to", "hall/e1", "--from", "2026-11-30T06:00:00"), "is no time"),
    ],
)
def test_a_hand_over_that_can_not_be_meant(arguments: tuple[str, ...], said: str) -> None:
    done = cncmon("machines", "hand-over", *arguments, "--dsn", "postgresql://nobody@127.0.0.1:9/none")
    assert done.returncode == 2
    assert said in done.stderr
