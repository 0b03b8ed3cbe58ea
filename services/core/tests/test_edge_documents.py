"""The edges' documents in a real bucket: compare and set, who wrote, what can't be read."""

import asyncio
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from cncmon_core import edge_documents, machine_files, names
from cncmon_core.edge_config import EdgeConfig, make
from cncmon_core.edge_documents import EdgeDocuments, Stored
from cncmon_core.errors import EdgeDocumentError

MACHINE = machine_files.load([Path(__file__).parent / "good_machines" / "00-good.yaml"]).machines["good-1"]


@pytest.fixture
async def bucket(nats_client: Client) -> Client:
    await nats_client.jetstream().create_key_value(KeyValueConfig(bucket=names.KV_CONFIG))
    return nats_client


def next_of(stored: Stored) -> EdgeConfig:
    return make("hall", "e1", stored.revision + 1, [MACHINE])


async def test_what_is_written_is_read_with_its_writer(bucket: Client) -> None:
    documents = EdgeDocuments(bucket, "operator/cnc")
    assert await documents.edges() == []
    assert await documents.read("hall", "e1") == Stored(None, 0, 0)
    written = await documents.write("hall", "e1", next_of)
    assert written is not None
    stored = await documents.read("hall", "e1")
    assert (stored.config, stored.revision, stored.writer) == (written, 1, "operator/cnc")
    assert await documents.edges() == [("hall", "e1")]
    # By somebody without a name, and by nobody at all.
    await EdgeDocuments(bucket).write("hall", "e1", next_of)
    assert (await documents.read("hall", "e1")).writer == ""
    assert await documents.write("hall", "e1", lambda _: None) is None
    assert (await documents.read("hall", "e1")).revision == 2


async def test_of_many_writers_at_once_each_takes_what_the_one_before_left(bucket: Client) -> None:
    writers = [EdgeDocuments(bucket, f"w{number}") for number in range(5)]
    written = await asyncio.gather(*(one.write("hall", "e1", next_of) for one in writers))
    assert sorted(one.revision for one in written if one is not None) == [1, 2, 3, 4, 5]


async def test_a_writer_that_is_never_quick_enough_says_so(bucket: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = EdgeDocuments(bucket)
    await documents.write("hall", "e1", next_of)
    looked = 0

    async def stale(*_: str) -> Stored:
        nonlocal looked
        looked += 1
        return Stored(None, 0, 0)

    monkeypatch.setattr(documents, "read", stale)
    with pytest.raises(EdgeDocumentError, match="changed by others 10 times"):
        await documents.write("hall", "e1", next_of)
    assert looked == edge_documents.TRIES_MAX


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"", ""), (b"no JSON", "malformed"), (b'{"schema":99,"revision":41}', "schema")],
    ids=["deleted", "no-json", "newer"],
)
async def test_what_can_not_be_used_is_replaced_by_a_higher_revision(bucket: Client, data: bytes, fault: str) -> None:
    documents = EdgeDocuments(bucket)
    for _ in range(3):
        await bucket.jetstream().publish(f"$KV.{names.KV_CONFIG}.hall.e1", data)
    stored = await documents.read("hall", "e1")
    assert stored.config is None
    assert fault in stored.fault
    assert stored.revision >= 3
    written = await documents.write("hall", "e1", next_of)
    assert written is not None
    assert written.revision > stored.revision


async def test_without_a_bucket_it_says_what_makes_one(nats_client: Client) -> None:
    with pytest.raises(EdgeDocumentError, match="cncmon-ingest bootstrap"):
        await EdgeDocuments(nats_client).edges()
