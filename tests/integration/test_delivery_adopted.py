"""Rule D7 with two databases on one stream: only one of them leads, and the other one only once it is adopted."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_ingest.adoption import adopt, adoption
from cncmon_ingest.edges import Edges
from cncmon_ingest.errors import ForeignError, OutageError
from cncmon_ingest.generation import Generation
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.leader import Rounds
from cncmon_ingest.migrate import migrate
from cncmon_ingest.reread import Rereading
from testkit.ingest import drained, frame, prepare, publish_batch, running_ingest, settings_for, until
from testkit.servers import Postgres, running_postgres, running_replica

SETTINGS: dict[str, Any] = {"ack_wait_ms": 1000, "sweep_interval_ms": 100, "hold_retry_ms_max": 200}
ROUNDS = 30


async def publish(client: Client, seqs: range) -> None:
    for seq in seqs:
        await publish_batch(client, seq, [frame(seq * 10 + number) for number in range(10)], base=(seq - 1) * 10)


async def generation_of(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval("SELECT generation FROM delivery")
    return found


class Candidate:
    """One database's leader, whose rounds a test calls one by one: it settles anew whenever its leadership ended."""

    def __init__(self, client: Client, dsn: str) -> None:
        self._client = client
        self._settings = settings_for(dsn, **SETTINGS)
        self.led = self.refused = 0
        self._now_s = 0.0
        self._rounds: Rounds | None = None

    async def open(self) -> "Candidate":
        self.connection = await asyncpg.connect(self._settings.database_dsn)
        return self

    async def round(self) -> None:
        """Do one round of the leader's a second after the last one, or settle."""
        self._now_s += 1.0
        js = self._client.jetstream()
        try:
            if self._rounds is None:
                generation = Generation(self.connection, js, await js.key_value(names.KV_WATERMARK))
                await generation.settle()
                async with asyncio.TaskGroup() as group:
                    rereading = Rereading(self._settings, self.connection, self._client, group)
                    rounds = Rounds(self._settings, self.connection, js, Edges(), generation, rereading)
                    await rounds.begin()
                    self._rounds = rounds
            await self._rounds.next(self._now_s)
            self.led += 1
        except OutageError as error:
            self._rounds = None
            self.refused += isinstance(error, ForeignError)


async def take_turns(*candidates: Candidate) -> None:
    for _ in range(ROUNDS):
        for one in candidates:
            await one.round()


@pytest.fixture
def second_postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def other_dsn(migrated: Postgres) -> str:
    return migrated.dsn


async def test_delivery_d7_of_two_databases_on_one_stream_one_leads(
    nats_client: Client, postgres_dsn: str, other_dsn: str
) -> None:
    """Staging with production's NATS: generations stay where they are, and one more comes with an adoption."""
    await prepare(nats_client, settings_for(postgres_dsn))
    production = await Candidate(nats_client, postgres_dsn).open()
    staging = await Candidate(nats_client, other_dsn).open()
    await take_turns(production, staging)
    assert (production.led, production.refused) == (ROUNDS, 0)
    assert (staging.led, staging.refused) == (0, ROUNDS)
    assert [await generation_of(one.connection) for one in (production, staging)] == [1, 1]
    refused = (await adoption(staging.connection)).refused
    assert refused is not None
    assert "it is of another cluster: system identifier" in refused

    await adopt(staging.connection)
    await staging.round()
    await take_turns(production, staging)
    assert (production.led, production.refused) == (ROUNDS, ROUNDS)
    assert (staging.led, staging.refused) == (ROUNDS + 1, ROUNDS)
    assert [await generation_of(one.connection) for one in (production, staging)] == [1, 2]
    for one in (production, staging):
        await one.connection.close()


async def test_delivery_d7_another_database_of_the_cluster_does_not_lead(
    nats_client: Client, postgres_dsn: str, postgres_server: Postgres
) -> None:
    """It does once the first one is gone and it has its name: dropped, created again, and restored."""
    await prepare(nats_client, settings_for(postgres_dsn))
    name = postgres_dsn.rsplit("/", 1)[1]
    admin = await asyncpg.connect(postgres_server.dsn)
    await admin.execute(f"CREATE DATABASE {name}_staging")
    staging_dsn = f"{postgres_dsn}_staging"
    connection = await asyncpg.connect(staging_dsn)
    await migrate(connection)
    await connection.close()
    production = await Candidate(nats_client, postgres_dsn).open()
    staging = await Candidate(nats_client, staging_dsn).open()
    await take_turns(production, staging)
    assert (production.led, staging.led, staging.refused) == (ROUNDS, 0, ROUNDS)
    assert "another database of the cluster" in str((await adoption(staging.connection)).refused)
    for one in (production, staging):
        await one.connection.close()
    # Not the staging one, although the stream's is gone: it has another name, and was refused before.
    await admin.execute(f"DROP DATABASE {name}")
    staging = await Candidate(nats_client, staging_dsn).open()
    await staging.round()
    assert (staging.led, staging.refused) == (0, 1)
    await staging.connection.close()
    # Nor one that was never refused: that the stream's database is gone says nothing about a database of another name.
    connection = await asyncpg.connect(staging_dsn)
    await connection.execute("UPDATE delivery SET refused = NULL")
    await connection.close()
    staging = await Candidate(nats_client, staging_dsn).open()
    await staging.round()
    assert (staging.led, staging.refused) == (0, 1)
    await staging.connection.close()
    await admin.execute(f"DROP DATABASE {name}_staging")
    await admin.execute(f"CREATE DATABASE {name}")
    connection = await asyncpg.connect(postgres_dsn)
    await migrate(connection)
    await connection.close()
    again = await Candidate(nats_client, postgres_dsn).open()
    await again.round()
    assert (again.led, await generation_of(again.connection)) == (1, 2)
    await again.connection.close()
    await admin.close()


async def test_delivery_d7_a_copy_of_the_disk_and_its_original_do_not_take_turns(
    nats_client: Client, migrated: Postgres, second_postgres: Postgres
) -> None:
    """Both have the same identifier, timeline and oid: the one that was overtaken while it was alive says so."""
    await prepare(nats_client, settings_for(migrated.dsn))
    original = await Candidate(nats_client, migrated.dsn).open()
    await original.round()
    await original.connection.close()
    backup = await asyncio.to_thread(migrated.back_up)
    second_postgres.stop()
    # All is copied, the password as well, but not the port.
    second_postgres.dsn = migrated.dsn.replace(str(migrated.port), str(second_postgres.port))
    configuration = "postgresql.auto.conf"
    (backup / configuration).write_text((second_postgres.data / configuration).read_text())
    await asyncio.to_thread(second_postgres.restore, backup)
    original = await Candidate(nats_client, migrated.dsn).open()
    copy = await Candidate(nats_client, second_postgres.dsn).open()
    await publish(nats_client, range(1, 2))
    await take_turns(original, copy)
    generations = [await generation_of(one.connection) for one in (original, copy)]
    assert max(generations) <= 2, f"{generations}: each took the other for a backup restored"
    assert original.led + copy.led >= ROUNDS - 1
    assert original.refused + copy.refused >= ROUNDS - 1
    for one in (original, copy):
        await one.connection.close()


async def test_delivery_d7_an_unfenced_old_primary_does_not_lead(
    nats_client: Client, nats_url: str, migrated: Postgres
) -> None:
    """The promoted replica leads by itself; the old primary does not, not even restarted, until it is adopted."""
    async with running_replica(migrated) as replica:
        await prepare(nats_client, settings_for(migrated.dsn))
        old = await Candidate(nats_client, migrated.dsn).open()
        await old.round()
        await replica.caught_up(migrated)
        await replica.cut_off()
        await replica.promote()
        new = await Candidate(nats_client, replica.dsn).open()
        await take_turns(new, old)
        assert (new.led, new.refused, await generation_of(new.connection)) == (ROUNDS, 0, 2)
        assert (old.led, old.refused, await generation_of(old.connection)) == (1, ROUNDS, 1)
        assert "on timeline 1 of its cluster, and timeline 2 has taken over" in str(
            (await adoption(old.connection)).refused
        )
        watch = IdentityWatch(nats_client)
        await watch.open()
        with pytest.raises(ForeignError, match=r"timeline 2 has taken over\. .* cncmon db adopt"):
            await watch.admit(old.connection)
        await old.connection.close()
        await new.connection.close()


async def test_delivery_d7_what_was_adopted_reads_the_stream_again(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, other_dsn: str
) -> None:
    """A dump restored into another cluster, its worker held until `cncmon db adopt`, which db check names."""
    await prepare(nats_client, settings_for(postgres_dsn, **SETTINGS))
    async with running_ingest(nats_url, settings_for(postgres_dsn, **SETTINGS)):
        await publish(nats_client, range(1, 11))
        await until(lambda: drained(nats_client))
    other = await asyncpg.connect(other_dsn)

    async def refused() -> bool:
        return (await adoption(other)).refused is not None

    async def stored(wanted: int) -> bool:
        return bool(await other.fetchval("SELECT count(DISTINCT active_program_line) FROM sensor_data") == wanted)

    async with running_ingest(nats_url, settings_for(other_dsn, **SETTINGS), workers=1) as workers:
        await publish(nats_client, range(11, 21))
        await until(refused)

        async def says_so() -> bool:
            return "cncmon db adopt" in (workers[0].check() or "")

        await until(says_so)
        assert await stored(0)
        checked = await asyncio.to_thread(cncmon, "db", "check", "--dsn", other_dsn, "--json")
        finding = next(one for one in json.loads(checked.stdout) if one["check"] == "identity")
        assert "it is of another cluster" in finding["says"]
        assert finding["todo"] == "if it is to lead from now on, run: cncmon db adopt"
        done = await asyncio.to_thread(cncmon, "db", "adopt", "--dsn", other_dsn, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert "it is of another cluster" in json.loads(done.stdout)["refused"]
        await until(lambda: stored(200))
        assert await generation_of(other) == 2
        assert await other.fetchval("SELECT count(*) FROM sensor_data") == 200
        assert await adoption(other) == (None, None)
    await other.close()


def cncmon(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cncmon_standalone.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
