"""Rule C3 on a real stream and database: what kills whoever takes it is buried, what only met restarts is stored."""

import asyncio
import math
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_core import identity, names
from cncmon_ingest import metrics, suspects
from cncmon_ingest.database_identity import identity_of
from cncmon_ingest.decode import Incoming
from cncmon_ingest.errors import LateError
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.isolated import DYING_S, Isolated
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.suspects import ATTEMPTS_MAX, GROUP_MESSAGES_MAX, Suspects
from testkit.acks import Acks
from testkit.ingest import EPOCH, drained, frame, prepare, publish_batch, running_ingest, settings_for, until
from testkit.waiting import WAIT_S_MAX

KILLING = Path(__file__).parents[1] / "robustness" / "faults" / "killing"
DELIVERIES = 3


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Isolated processes are harmed by messages; this one is not. Returns the folder of the files that steer them."""
    monkeypatch.setenv("PYTHONPATH", str(KILLING))
    monkeypatch.setenv("CNC_HARM_FOLDER", str(tmp_path))
    return tmp_path


def short(dsn: str, **changes: Any) -> IngestSettings:
    return settings_for(dsn, **({"max_deliver": DELIVERIES, "suspect_ms_max": 600_000, "ack_wait_ms": 2000} | changes))


async def deliver(client: Client, count: int, times: int = DELIVERIES) -> None:
    """Let messages be taken and not acknowledged, as by workers that died of them or beside them."""
    subscription = await client.jetstream().pull_subscribe_bind(names.DURABLE, names.STREAM)
    for _ in range(times):
        taken: list[Msg] = []
        while len(taken) < count:
            taken += await subscription.fetch(count - len(taken), timeout=30)
        for message in taken:
            await message.nak()
        await client.flush()
    await subscription.unsubscribe()


async def stored(database: asyncpg.Connection) -> list[int]:
    rows = await database.fetch("SELECT DISTINCT active_program_line / 10 AS seq FROM sensor_data ORDER BY 1")
    return [row["seq"] for row in rows]


async def letters(database: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await database.fetch("SELECT identity, frame, reason, detail FROM dead_letters")
    assert await database.fetchval("SELECT count(*) FROM suspects") == 0, "a row is there while one is tried"
    return [tuple(row) for row in rows]


async def publish(client: Client, seqs: range, harm: dict[int, str] | None = None) -> None:
    for seq in seqs:
        changes = {"mode": harm[seq]} if harm and seq in harm else {}
        parts = [frame(seq * 10 + number, **changes) for number in range(3)]
        await publish_batch(client, seq, parts, base=(seq - 1) * 3, compress=False)


async def watermark(database: asyncpg.Connection) -> int:
    return int(await database.fetchval("SELECT coalesce(max(seq), 0) FROM watermarks WHERE epoch = $1", EPOCH))


async def at(database: asyncpg.Connection, seq: int) -> bool:
    return await watermark(database) == seq


def is_there(path: Path) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return path.exists()

    return found


def halved() -> float:
    value: float = metrics.SUSPECT_GROUPS_HALVED._value.get()
    return value


async def sessions(database: asyncpg.Connection) -> int:
    await database.execute("SELECT pg_stat_clear_snapshot()")
    query = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
    return int(await database.fetchval(query))


async def test_delivery_c3_restarts_bury_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """FAULT 33: taken three times by workers that ended, and stored."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 6))
    await deliver(nats_client, 5)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(6, 9))
        await until(lambda: at(database, 8))
        await until(lambda: drained(nats_client))
    assert await stored(database) == list(range(1, 9))
    assert await letters(database) == []


async def test_delivery_c3_innocent_suspects_are_tried_in_groups(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """1,010 of them, as two fetches of a worker that was restarted four times: nobody waits for a connection each."""
    settings = short(postgres_dsn, ack_wait_ms=30_000)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 1011))
    await deliver(nats_client, 1010)
    before, splits = await sessions(database), halved()
    async with running_ingest(nats_url, settings):
        await until(lambda: at(database, 1010))
        await until(lambda: drained(nats_client))
    assert await sessions(database) - before < 30
    assert halved() == splits
    info = await nats_client.jetstream().consumer_info(names.STREAM, names.DURABLE)
    assert info.delivered is not None
    assert info.delivered.consumer_seq == 1010 * (DELIVERIES + 1), "each was taken once more, and none deferred"
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 3 * 1010
    assert await stored(database) == list(range(1, 1011))
    assert await letters(database) == []


async def test_delivery_c3_what_kills_is_found_by_halving(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """One of 1,010: the groups that die are those that it is in, and nobody else is tried in vain."""
    settings = short(postgres_dsn, ack_wait_ms=30_000)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 1011), {777: "CNC-KILL"})
    await deliver(nats_client, 1010)
    splits = halved()
    async with running_ingest(nats_url, settings):
        await until(lambda: at(database, 1010))
        await until(lambda: drained(nats_client))
    assert 1 <= halved() - splits <= math.log2(GROUP_MESSAGES_MAX)
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 3 * 1009
    assert await stored(database) == [seq for seq in range(1, 1011) if seq != 777]
    [(identity, number, reason, detail)] = await letters(database)
    assert (identity, number, reason) == (f"{EPOCH}:777", -1, "poison")
    assert "signal 9" in detail


async def test_delivery_c3_what_kills_is_buried_and_the_others_are_stored(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """FAULT 19, the last step: innocent messages beside it are stored, those behind it do not wait for it."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 6), {3: "CNC-KILL"})
    await deliver(nats_client, 5)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(6, 9))
        await until(lambda: at(database, 8))
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1, 2, 4, 5, 6, 7, 8]
    [(identity, number, reason, detail)] = await letters(database)
    assert (identity, number, reason) == (f"{EPOCH}:3", -1, "poison")
    assert "signal 9" in detail
    row = await database.fetchrow("SELECT batches_stored, batches_dead, samples_stored, samples_dead FROM watermarks")
    assert row is not None
    assert tuple(row) == (7, 1, 21, 3)


async def test_delivery_c3_a_process_does_not_outlive_its_worker(nats_client: Client) -> None:
    """The worker is stopped in the very moment in which it gives a process that hangs the time to die by itself."""
    isolated = Suspects(
        short("postgresql://nobody@127.0.0.1:1/none"), datetime.now(UTC), IdentityWatch(nats_client)
    )._isolated
    hanging = await asyncio.create_subprocess_exec("sleep", "600", stdin=PIPE, stdout=PIPE, start_new_session=True)
    isolated.process = hanging
    ending = asyncio.create_task(isolated.end(kill=True))
    await asyncio.sleep(DYING_S / 10)
    ending.cancel()
    await asyncio.wait([ending])
    assert await isolated.end(kill=True) == -signal.SIGKILL
    assert hanging.returncode == -signal.SIGKILL


async def test_delivery_c3_what_hangs_is_buried(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    settings = short(postgres_dsn, suspect_ms_max=2000)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 2), {1: "CNC-HANG"})
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(2, 5))
        await until(lambda: drained(nats_client))
    assert await stored(database) == [2, 3, 4]
    [(_, _, reason, detail)] = await letters(database)
    assert (reason, "did not answer within 2 s, 3 times" in detail) == ("poison", True)


async def test_delivery_c3_who_was_late_once_is_tried_again(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    killing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was frozen, or got no processor: one without a message answers, and still it is no evidence."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    wait = killing / "wait"
    wait.touch()
    run = Isolated.run

    async def hasty(self: Isolated, task: Any, limit_s: float) -> Any:
        try:
            return await run(self, task, 1.0 if task.members and wait.exists() else limit_s)
        except LateError:
            assert await database.fetchval("SELECT attempts FROM suspects") == 1
            wait.unlink()
            raise

    monkeypatch.setattr(Isolated, "run", hasty)
    await publish(nats_client, range(1, 2), {1: "CNC-WAIT"})
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1]
    assert await letters(database) == []


async def test_delivery_c3_a_machine_that_stands_still_is_no_evidence(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More often than attempts are made: one without a message does not answer, either."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    late: list[bool] = []
    run, started = Isolated.run, Isolated._started

    def stands_still() -> bool:
        return len(late) < 2 * (ATTEMPTS_MAX + 1)

    async def frozen(self: Isolated) -> Any:
        process = await started(self)
        if stands_still():
            os.killpg(process.pid, signal.SIGSTOP)
        return process

    async def hasty(self: Isolated, task: Any, limit_s: float) -> Any:
        try:
            return await run(self, task, 0.1 if stands_still() else limit_s)
        except LateError:
            late.append(bool(task.members))
            raise

    monkeypatch.setattr(Isolated, "run", hasty)
    monkeypatch.setattr(Isolated, "_started", frozen)
    await publish(nats_client, range(1, 2))
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert late == [True, False] * (ATTEMPTS_MAX + 1)
    assert await stored(database) == [1]
    assert await letters(database) == []


async def test_delivery_c3_a_suspect_with_dead_frames_is_stored_but_for_them(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """What the isolated process logs of it is no answer."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish_batch(nats_client, 1, [b"{", frame(10), b"no JSON"])
    await nats_client.jetstream().publish("CNC_DATA.hall.e1", b"x", headers={identity.EPOCH: "-5", identity.SEQ: "1"})
    await publish(nats_client, range(2, 3))
    await deliver(nats_client, 3)
    acks = await Acks.of(nats_client)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert [acks.final(seq) for seq in (1, 2, 3)] == [["+ACK"], ["+TERM"], ["+ACK"]]
    assert await stored(database) == [1, 2]
    assert sorted(number for _, number, _, _ in await letters(database)) == [-1, 0, 2]


async def test_delivery_c3_a_database_that_is_slow_is_no_evidence(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A lock that others hold outlasts the time of an attempt: the process says so, and nothing is buried."""
    settings = short(postgres_dsn, suspect_ms_max=4000)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 2))
    await deliver(nats_client, 1)
    holder = await asyncpg.connect(postgres_dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE")
    ended: list[str | None] = []
    run = Isolated.run

    async def watched(self: Isolated, task: Any, limit_s: float) -> Any:
        try:
            answer, why = await run(self, task, limit_s)
        except LateError as error:
            ended.append(str(error))
            raise
        ended.append(answer.outage if answer else why)
        return answer, why

    async def several() -> bool:
        return len(ended) > ATTEMPTS_MAX

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Isolated, "run", watched)
        async with running_ingest(nats_url, settings):
            await until(several)
            await transaction.rollback()
            await until(lambda: drained(nats_client))
    await holder.close()
    assert await stored(database) == [1]
    assert await letters(database) == []
    assert all(why is None or "did not commit" in why for why in ended), ended


async def test_delivery_c3_an_outage_is_no_evidence(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """More outages than attempts are made of which nobody saw the end."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    outages = killing / "outages"
    outages.write_text("".join(f"{number}\n" for number in range(ATTEMPTS_MAX + 2)))
    await publish(nats_client, range(1, 2), {1: "CNC-OUTAGE"})
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1]
    assert await letters(database) == []
    assert outages.read_text() == ""


async def test_delivery_c3_an_outage_halves_no_group(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    outages = killing / "outages"
    outages.write_text("".join(f"{number}\n" for number in range(ATTEMPTS_MAX + 2)))
    await publish(nats_client, range(1, 9), dict.fromkeys(range(1, 9), "CNC-OUTAGE"))
    await deliver(nats_client, 8)
    splits = halved()
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert outages.read_text() == ""
    assert halved() == splits
    assert await stored(database) == list(range(1, 9))
    assert await letters(database) == []


@pytest.mark.parametrize(("stops", "is_buried"), [(ATTEMPTS_MAX - 1, False), (ATTEMPTS_MAX, True)])
async def test_delivery_c3_attempts_are_counted_before_they_begin(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    killing: Path,
    stops: int,
    is_buried: bool,
) -> None:
    """A worker that ends in the midst of an attempt sees no end of it: so many are made, and no more."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    began, wait = killing / "began", killing / "wait"
    wait.touch()
    await publish(nats_client, range(1, 2), {1: "CNC-WAIT"})
    await deliver(nats_client, 1)
    for number in range(1, stops + 1):
        async with running_ingest(nats_url, settings):
            await until(is_there(began))
            assert await database.fetchval("SELECT attempts FROM suspects") == number
        began.unlink()
    if not is_buried:
        wait.unlink()
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    found = await letters(database)
    if is_buried:
        assert [(reason, "3 attempts" in detail) for _, _, reason, detail in found] == [("poison", True)]
        assert await stored(database) == []
        assert not began.exists(), "not tried once more"
    else:
        assert found == []
        assert await stored(database) == [1]


async def test_delivery_c3_a_group_that_ends_with_its_worker_is_not_tried_together_again(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """Memory runs out and takes the worker, too: a group that counts for nothing would do so for ever."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    began, wait = killing / "began", killing / "wait"
    wait.touch()
    await publish(nats_client, range(1, 5), {3: "CNC-WAIT"})
    await deliver(nats_client, 4)
    async with running_ingest(nats_url, settings):
        await until(is_there(began))
        rows = await database.fetch("SELECT stream_seq, attempts FROM suspects ORDER BY 1")
        assert [tuple(row) for row in rows] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    began.unlink()
    async with running_ingest(nats_url, settings):

        async def alone() -> bool:
            return began.exists() and await database.fetchval("SELECT attempts FROM suspects WHERE stream_seq = 3") == 1

        await until(alone)
        rows = await database.fetch("SELECT attempts FROM suspects WHERE stream_seq <> 3")
        assert {row["attempts"] for row in rows} <= {0}, "those behind it wait to be tried alone"
        wait.unlink()
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1, 2, 3, 4]
    assert await letters(database) == []


async def test_delivery_c3_the_last_delivery_allowed_is_taken_in_the_usual_way(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """Delivered `max_deliver` times, not more: it never sees the isolated process, which it would kill."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 3), {1: "CNC-KILL"})
    await deliver(nats_client, 2, DELIVERIES - 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1, 2]
    assert await letters(database) == []


async def test_delivery_c3_nothing_is_acknowledged_for_a_past_life(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """Another generation begins while a message is tried: what is committed now may be missing from it."""
    settings = short(postgres_dsn, ack_wait_ms=6000, hold_retry_ms_max=200)
    await prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    life = await identity_of(database)
    await bucket.put(names.KV_DATABASE_KEY, msgspec.json.encode(life))
    began, wait = killing / "began", killing / "wait"
    wait.touch()
    await publish(nats_client, range(1, 2), {1: "CNC-WAIT"})
    await deliver(nats_client, 1)
    acks = await Acks.of(nats_client)
    async with running_ingest(nats_url, settings, leader=False):
        await until(is_there(began))
        later = msgspec.structs.replace(life, generation=life.generation + 1)
        await bucket.put(names.KV_DATABASE_KEY, msgspec.json.encode(later))
        wait.unlink()
        await until(lambda: stored_is(database, [1]))
        # Kept again after the commit, on the connection that an acknowledgement would have taken before.
        await acks.more("+WPI", 2)
        assert not {"+ACK", "+TERM"} & set(acks.final(1))
        await database.execute("UPDATE delivery SET generation = $1", later.generation)
        await until(lambda: drained(nats_client))
    assert acks.final(1)[-1] == "+ACK"
    assert await stored(database) == [1]
    assert await letters(database) == []


async def test_delivery_c3_a_suspect_that_comes_while_the_process_ends_is_settled(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else may come for hours that would have it noticed."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    ending, goes_on, end = asyncio.Event(), asyncio.Event(), Isolated.end

    async def slowly(self: Isolated, *, kill: bool = False) -> int:
        ending.set()
        await goes_on.wait()
        return await end(self, kill=kill)

    monkeypatch.setattr(Isolated, "end", slowly)
    monkeypatch.setattr(Suspects, "suspects", lambda *_: True)
    async with running_ingest(nats_url, settings) as (worker,):
        await publish(nats_client, range(1, 2))
        await asyncio.wait_for(ending.wait(), WAIT_S_MAX)
        await publish(nats_client, range(2, 3))

        async def came() -> bool:
            return bool(worker._suspects and worker._suspects.waiting)

        await until(came)
        goes_on.set()
        await until(lambda: stored_is(database, [1, 2]))
        await until(lambda: drained(nats_client))


async def stored_is(database: asyncpg.Connection, seqs: list[int]) -> bool:
    return await stored(database) == seqs


@pytest.mark.parametrize(("stream_is_off", "sample_is_off"), [(-1, 0), (1, 1)], ids=["slow stream", "fast stream"])
async def test_delivery_b6_alone_now_is_the_later_of_stream_and_database(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    stream_is_off: int,
    sample_is_off: int,
) -> None:
    """JetStream's clock is a day behind the database's, or ahead of it; the sample has the time of the later one."""
    real = suspects.incoming_of

    def shifted(message: Any) -> Incoming:
        incoming = real(message)
        return incoming._replace(stored_at=incoming.stored_at + timedelta(days=stream_is_off))

    monkeypatch.setattr(suspects, "incoming_of", shifted)
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    moment = datetime.now(UTC) + timedelta(days=sample_is_off)
    await publish_batch(nats_client, 1, [frame(1, timestamp=moment.isoformat())])
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await letters(database) == []
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 1


async def test_delivery_c3_more_suspects_than_fit_are_deferred_and_counted(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    settings = short(postgres_dsn, fetch_messages=5)
    await prepare(nats_client, settings)
    wait = killing / "wait"
    wait.touch()
    await publish(nats_client, range(1, 31), {1: "CNC-WAIT"})
    await deliver(nats_client, 30)
    before = metrics.SUSPECTS_DEFERRED._value.get()

    async def deferred() -> bool:
        return bool(metrics.SUSPECTS_DEFERRED._value.get() - before >= 10)

    async with running_ingest(nats_url, settings) as (worker,):
        await until(deferred)
        assert worker._suspects is not None
        assert len(worker._suspects.waiting) <= 20
        wait.unlink()
        await until(lambda: drained(nats_client))
    assert await stored(database) == list(range(1, 31))
    assert await letters(database) == []


async def test_delivery_c3_the_consumer_gives_up_nothing_by_itself(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A limit of an earlier version is taken away: the server would leave such messages undelivered for ever."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    config = (await js.consumer_info(names.STREAM, names.DURABLE)).config
    assert config is not None
    await js.add_consumer(names.STREAM, config.evolve(max_deliver=3))
    await publish(nats_client, range(1, 2))
    await deliver(nats_client, 1, times=2)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await asyncio.sleep(0)
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    assert info.config is not None
    assert info.config.max_deliver == -1
    assert await stored(database) == [1]
