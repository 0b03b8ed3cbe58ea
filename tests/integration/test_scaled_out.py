"""What is added when one machine is not enough, by configuration alone: docs/scaling.md."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import httpx
import nats.errors
import pytest
from nats.aio.client import Client

from cncmon_api.main import listen, run
from cncmon_api.settings import ApiSettings
from cncmon_core import names
from cncmon_core.monitor import Health
from cncmon_ingest.migrate import migrate
from cncmon_standalone.embedded import nats as embedded
from testkit import ingest
from testkit.ingest import drained, frame, publish_batch, running_ingest, settings_for, until
from testkit.ports import free_port
from testkit.servers import Postgres, Server, running_nats_cluster, running_replica
from testkit.waiting import WAIT_S_MAX

BATCHES = 60


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Server]]:
    with running_nats_cluster(tmp_path) as servers:
        yield servers


async def connected(*urls: str) -> Client:
    client = Client()
    await client.connect(list(urls), reconnect_time_wait=1, max_reconnect_attempts=-1)
    return client


async def test_a_stream_of_three_replicas_outlives_a_server(
    cluster: list[Server], postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """`CNCMON_INGEST_STREAM_REPLICAS=3`: the server that leads the stream is killed, publishing and storing go on."""
    urls = [embedded.url(server.port) for server in cluster]
    settings = settings_for(postgres_dsn, stream_replicas=3, ack_wait_ms=2000)
    client = await connected(*urls)

    # The servers have to find one another first.
    await answered(lambda: ingest.prepare(client, settings))
    info = await client.jetstream().stream_info(names.STREAM)
    assert info.cluster is not None
    assert len(info.cluster.replicas or []) == 2
    async with running_ingest(",".join(urls), settings, workers=2):
        for seq in range(1, BATCHES + 1):
            if seq == BATCHES // 2:
                leader = cluster[int((info.cluster.leader or "").rsplit("-", 1)[1])]
                await asyncio.to_thread(leader.kill)
            await _published(client, seq)
        await answered(lambda: _is_drained(client))
        assert await database.fetchval("SELECT count(*) FROM sensor_data") == BATCHES
        assert await database.fetchval("SELECT count(DISTINCT active_program_line) FROM sensor_data") == BATCHES
    await client.close()


async def answered(ask: Callable[[], Awaitable[object]], timeout_s: float = WAIT_S_MAX) -> None:
    """Ask until there is an answer: a cluster without a leader has none for a while. Fails with what it said last."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            await ask()
        except (nats.errors.Error, TimeoutError, AssertionError):
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def _is_drained(client: Client) -> None:
    assert await drained(client)


async def _published(client: Client, seq: int) -> None:
    """Publish until it is acknowledged, as an agent does: the same bytes under the same id."""
    data = [frame(seq)]
    # What the server that is killed has taken it may never acknowledge.
    await answered(lambda: publish_batch(client, seq, data, base=seq - 1, timeout_s=5))


async def test_people_read_from_a_replica(own_postgres: Postgres) -> None:
    """The query API with the URL of a streaming replica: ingest's server has the writing to itself."""
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.execute("SELECT ensure_partition('sensor_data', now())")
    await connection.execute("INSERT INTO machines VALUES ('m1', 'hall', 'e1')")
    async with running_replica(own_postgres) as replica:
        settings = ApiSettings(database_dsn=replica.dsn, port=0, tick_ms=100)
        listener = listen(settings)
        stop = asyncio.Event()
        serving = asyncio.create_task(run(settings, listener, Health(), stop))
        url = "http://{}:{}".format(*listener.getsockname()[:2])
        try:
            async with httpx.AsyncClient(base_url=url, timeout=WAIT_S_MAX) as client:
                await connection.execute(
                    "INSERT INTO sensor_data (time, machine_id, temperature, machine_state) "
                    "VALUES (now(), 'm1', 21.5, 'running')"
                )
                await replica.caught_up(own_postgres)

                async def live() -> bool:
                    answer = await client.get("/api/v1/machines")
                    return answer.status_code == 200 and answer.json()["machines"][0]["state"] == "running"

                await until(live)
                answer = await client.get("/api/v1/machines/m1/series")
                assert 21.5 in answer.json()["fields"]["temperature"]["mean"]
                assert (await client.get("/readyz")).status_code == 200
        finally:
            stop.set()
            await serving
    await connection.close()


ACCOUNTS = """
accounts {
  halle: { jetstream: enabled, users: [{ user: halle, password: a }] }
  jena: { jetstream: enabled, users: [{ user: jena, password: b }] }
}
"""


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Server]:
    """One NATS with an account for each site."""
    port = free_port()
    command = embedded.command(tmp_path / "nats", port)
    config = Path(command.argv[-1])
    config.write_text(config.read_text() + ACCOUNTS)
    server = Server(command, port, tmp_path / "nats.log")
    server.start()
    yield server
    server.stop()


async def test_sites_apart(
    accounts: Server, own_postgres: Postgres, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A site is a stream, its workers and a database of its own: subjects and edges are as they were."""
    other = await asyncpg.connect(own_postgres.dsn)
    await migrate(other)
    sites = {"halle": ("a", postgres_dsn, database), "jena": ("b", own_postgres.dsn, other)}
    for number, (site, (password, dsn, connection)) in enumerate(sites.items(), 1):
        url = f"nats://{site}:{password}@127.0.0.1:{accounts.port}"
        client = await connected(url)
        settings = settings_for(dsn)
        await ingest.prepare(client, settings)
        async with running_ingest(url, settings):
            for seq in range(1, number + 1):
                await publish_batch(client, seq, [frame(seq, machine_id=f"{site}-1")], site=site, base=seq - 1)
            await until(lambda client=client: drained(client))  # type: ignore[misc]
        await client.close()
        rows = await connection.fetch("SELECT machine_id, count(*) FROM sensor_data GROUP BY 1")
        assert [tuple(row) for row in rows] == [(f"{site}-1", number)]
    await other.close()
