"""Rule B2 where two agents publish under one epoch: what differs is a dead letter and an alarm, at any time."""

import asyncio
import hashlib
from datetime import UTC, datetime

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_core.events import EPOCH_CLOSED, Event, encode_event
from cncmon_core.frames import compress, join
from cncmon_core.watermark import Watermark, decode_watermark
from cncmon_ingest import hashes, ledger
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.gaps import batch, message, watermark_of
from testkit.ingest import EPOCH, drained, frame, publish_batch, running_ingest, settings_for, until

FORKS = "SELECT count(*) FROM events WHERE type = 'epoch_forked'"


async def letters(database: asyncpg.Connection) -> list[str]:
    """Return the identities of all conflicts."""
    rows = await database.fetch("SELECT identity FROM dead_letters WHERE reason = 'identity_conflict' ORDER BY id")
    return [row["identity"] for row in rows]


async def told(client: Client) -> Watermark | None:
    """Return the edge's watermark document, None where there is none yet."""
    bucket = await client.jetstream().key_value(names.KV_WATERMARK)
    keys = await bucket.keys()
    return decode_watermark((await bucket.get("hall.e1")).value or b"") if "hall.e1" in keys else None


@on_both_servers
async def test_delivery_b2_other_content_is_a_conflict_after_pruning_too(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        for seq in range(1, 6):
            await publish_batch(nats_client, seq, [frame(seq)])

        async def pruned() -> bool:
            return await watermark_of(database) == 5 and not await database.fetchval("SELECT count(*) FROM ledger")

        await until(pruned)
        # As an agent publishes them, within the duplicate window: the twin's batch must get into the stream at all.
        twin = [frame(33, machine_id="cnc-twin")]
        await publish_batch(nats_client, 3, twin)
        await publish_batch(nats_client, 5, [frame(55, machine_id="cnc-twin")])
        # A resend under another message id, as after the duplicate window.
        await publish_batch(nats_client, 3, twin, message_id="again")
        await until(lambda: drained(nats_client))
        assert await letters(database) == [f"{EPOCH}:3", f"{EPOCH}:5"]

        async def is_told() -> bool:
            document = await told(nats_client)
            return document is not None and document.forked == [EPOCH]

        # Though no watermark moves any more.
        await until(is_told)
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 5
    assert await database.fetchval("SELECT payload FROM dead_letters ORDER BY id") == compress(join(twin))
    assert await database.fetchval(FORKS) == 1
    assert await database.fetchval("SELECT data->>'epoch' FROM events WHERE type = 'epoch_forked'") == str(EPOCH)


@pytest.mark.parametrize("twin_first", [True, False])
async def test_delivery_b2_the_one_that_is_stored_is_no_conflict_in_hand(
    postgres_dsn: str, database: asyncpg.Connection, twin_first: bool
) -> None:
    """Replayed from the dead letters it would be stored twice."""
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    stored, twin = [frame(1)], [frame(2)]
    await store.write([message(2, stored)])
    outcome = await store.write([message(2, content) for content in ((twin, stored) if twin_first else (stored, twin))])
    assert [item.sha256 for item in outcome.conflicts] == [message(2, twin).sha256]
    assert await database.fetchval("SELECT payload FROM dead_letters") == join(twin)
    assert await letters(database) == [f"{EPOCH}:2"]
    store.close()


async def test_delivery_b2_a_closing_in_hand_conflicts_like_any_other(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))

    def closing(last_seq: int) -> Decoded:
        data = {"epoch": EPOCH + 1, "last_seq": last_seq, "samples": 0}
        return message(1, [encode_event(Event(EPOCH_CLOSED, datetime.now(UTC), data=data))], kind="events")

    await store.write([closing(7), closing(9)])
    assert await letters(database) == [f"{EPOCH}:1"]
    assert await database.fetchval("SELECT closed_seq FROM watermarks WHERE epoch = $1", EPOCH + 1) == 7
    store.close()


async def test_delivery_b2_what_was_resent_is_no_conflict(postgres_dsn: str, database: asyncpg.Connection) -> None:
    """A lost PubAck, a restart that drains, a stream made anew, a generation read again: the same content."""
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    batches = [batch(seq) for seq in range(1, 4)]
    await store.write(batches)
    await advance(database)
    for _ in range(2):
        assert (await store.write([batches[0], batches[2], batches[0]])).new == []
    assert await letters(database) == []
    assert await database.fetchval(FORKS) == 0
    store.close()


async def test_delivery_b2_two_workers_find_one_fork(postgres_dsn: str, database: asyncpg.Connection) -> None:
    stores = [Store(await connect(postgres_dsn), datetime.now(UTC)) for _ in range(2)]
    await stores[0].write([batch(seq, epoch=epoch) for seq in range(1, 21) for epoch in (EPOCH, EPOCH + 1)])
    await advance(database)
    found = [
        [message(seq, [frame(1000 + seq)], epoch=epoch) for seq in range(1 + number, 21, 2) for epoch in order]
        for number, order in enumerate(((EPOCH, EPOCH + 1), (EPOCH + 1, EPOCH)))
    ]
    async with asyncio.timeout(60):
        await asyncio.gather(*(store.write(messages) for store, messages in zip(stores, found, strict=True)))
    assert len(await letters(database)) == 40
    assert await database.fetchval(FORKS) == 2
    for store in stores:
        store.close()


# --- the hashes ---------------------------------------------------------------------------------------------------


async def test_delivery_b2_every_pruned_hash_is_found_and_no_other(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    written: dict[tuple[int, int], bytes] = {}
    # Out of order, over several advances, with a hole and two epochs.
    for seqs in ((1, 2, 3), (5, 4), (9, 8), (7,)):
        messages = [batch(seq, epoch=epoch) for seq in seqs for epoch in (EPOCH, EPOCH + 1)]
        written |= {ledger.key_of(item): item.sha256 for item in messages}
        await store.write(messages)
        await advance(database)
    assert await watermark_of(database) == 5
    keys = [(epoch, seq) for epoch in (EPOCH, EPOCH + 1, EPOCH + 2) for seq in range(1, 12)]
    known = await hashes.known(database, keys)
    assert sorted(known) == [(epoch, seq) for epoch in (EPOCH, EPOCH + 1) for seq in (1, 2, 3, 4, 5, 7, 8, 9)]
    assert all(written[key].startswith(known[key]) for key in known)
    # One row per epoch and advance.
    assert await database.fetchval("SELECT count(*) FROM ledger_hashes") == 4
    store.close()


async def test_delivery_b2_hashes_of_long_runs_are_found_by_their_place(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await database.execute(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition, base) "
        "SELECT $1, seq, sha256(seq::text::bytea), 1, 0, 'stored', seq - 1 FROM generate_series(1, 10000) seq",
        EPOCH,
    )
    await database.execute("INSERT INTO watermarks (epoch, site, edge) VALUES ($1, 'hall', 'e1')", EPOCH)
    await advance(database)
    assert await database.fetchval("SELECT max(octet_length(digests)) FROM ledger_hashes") == 8 * 4096
    known = await hashes.known(database, [(EPOCH, seq) for seq in range(10_002)])
    assert known == {(EPOCH, seq): hashlib.sha256(str(seq).encode()).digest()[:8] for seq in range(1, 10_001)}


async def test_delivery_b2_hashes_are_kept_while_the_stream_may_hold_the_message(
    postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    age_s = 24 * 3600.0
    await database.execute(
        "INSERT INTO ledger_hashes (epoch, seq_from, seq_to, digests, pruned) "
        "SELECT $1, seq, seq, '\\x0011223344556677', now() - make_interval(hours => seq) "
        "FROM generate_series(20, 30) AS seq",
        EPOCH,
    )
    await database.execute("UPDATE delivery SET reread_from = 1, reread_to = 2")
    assert await hashes.prune(database, age_s) == 0
    await database.execute("UPDATE delivery SET reread_ended = now()")
    monkeypatch.setattr(hashes, "PRUNED_MAX", 4)
    # In bounded steps, oldest first: those older than the stream's 24 hours and one more.
    assert await hashes.prune(database, age_s) == 4
    assert await database.fetchval("SELECT max(seq_to) FROM ledger_hashes") == 26
    assert [await hashes.prune(database, age_s) for _ in range(2)] == [2, 0]
    assert await database.fetchval("SELECT max(seq_to) FROM ledger_hashes") == 24


async def test_delivery_b2_a_hash_that_is_no_longer_kept_makes_a_batch_known(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    await store.write([batch(1)])
    await advance(database)
    await database.execute("DELETE FROM ledger_hashes")
    outcome = await store.write([message(1, [frame(7)])])
    assert (outcome.new, outcome.conflicts) == ([], [])
    store.close()
