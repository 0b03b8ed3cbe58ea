"""The configuration that an edge follows, on a real bucket; its last good one on a real disk."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.js import api

from cncmon_agent.config.current import DOUBT_S, Current, Version
from cncmon_agent.config.follower import ConfigFollower
from cncmon_agent.config.store import FILE, ConfigStore
from cncmon_core import edge_config, names
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.errors import ConfigError
from cncmon_core.machine import Machine, Signal
from testkit.recorder import until
from testkit.waiting import WAIT_S_MAX

SITE, EDGE = "default", "edge"
KEY, STREAM = f"$KV.{names.KV_CONFIG}.{SITE}.{EDGE}", f"KV_{names.KV_CONFIG}"


@pytest.fixture
def config_of(machine_of) -> Callable[..., EdgeConfig]:
    def of(*machines: str, revision: int = 1, interval_ms: int = 1000) -> EdgeConfig:
        made = [
            msgspec.structs.replace(
                machine_of([Signal(name="temperature", register=1)], poll_interval_ms=interval_ms),
                metadata=msgspec.structs.replace(machine_of([]).metadata, name=name),
            )
            for name in machines
        ]
        return edge_config.make(SITE, EDGE, revision, made)

    return of


class Following:
    """A follower with what it applied, on a connection or without."""

    def __init__(self, settings: Any, folder: Path | None) -> None:
        self.applied: list[dict[str, Machine]] = []
        self.follower = ConfigFollower(settings, folder, self.applied.append)

    @property
    def report(self) -> Any:
        return self.follower.report

    @contextlib.asynccontextmanager
    async def on(self, client: Client) -> AsyncIterator[None]:
        task = asyncio.create_task(self.follower.follow(client))
        try:
            yield
        finally:
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])


async def make_bucket(client: Client, *, republish: bool = True, direct: bool = True) -> None:
    await client.jetstream().create_key_value(
        api.KeyValueConfig(
            bucket=names.KV_CONFIG,
            history=1,
            direct=direct,
            republish=api.RePublish(src=f"$KV.{names.KV_CONFIG}.>", dest=f"cncmon.kv.{names.KV_CONFIG}.>")
            if republish
            else None,
        )
    )


async def put(client: Client, value: EdgeConfig | bytes) -> None:
    data = value if isinstance(value, bytes) else edge_config.encode(value)
    await client.jetstream().publish(KEY, data)


@pytest.fixture
def following(settings_of, tmp_path: Path) -> Callable[..., Following]:
    def make(folder: Path | None = tmp_path, **changes: Any) -> Following:
        return Following(settings_of(**({"config_poll_ms": 3_600_000} | changes)), folder)

    return make


async def test_a_change_is_heard_of_at_once_and_applied_once(
    nats_client: Client, following: Any, config_of: Any
) -> None:
    await make_bucket(nats_client)
    here = following()
    await here.follower.start()
    assert here.applied == []
    assert (here.report.source, here.report.revision, here.report.errors) == ("none", None, [])
    async with here.on(nats_client):
        await asyncio.sleep(0.3)
        first = config_of("a", "b", revision=1)
        await put(nats_client, first)
        await until(lambda: here.applied)  # the next poll is in an hour
        assert here.applied == [first.by_name]
        assert (here.report.source, here.report.revision, here.report.sha256) == ("kv", 1, first.sha256)
        await put(nats_client, config_of("a", "b", revision=2))
        await until(lambda: here.report.revision == 2)
        await put(nats_client, config_of("a", revision=3))
        await until(lambda: here.report.revision == 3)
        assert [list(machines) for machines in here.applied] == [["a", "b"], ["a"]]


async def test_what_is_there_already_is_read_at_once(nats_client: Client, following: Any, config_of: Any) -> None:
    await make_bucket(nats_client)
    await put(nats_client, config_of("a", revision=4))
    here = following()
    async with here.on(nats_client):
        await until(lambda: here.report.revision == 4)


@pytest.mark.parametrize("bucket", [{"republish": False}, {"republish": False, "direct": False}], ids=str)
async def test_a_poll_finds_what_was_not_heard(
    nats_client: Client, following: Any, config_of: Any, bucket: dict[str, bool]
) -> None:
    await make_bucket(nats_client, **bucket)
    here = following(config_poll_ms=200)
    async with here.on(nats_client):
        await put(nats_client, config_of("a", revision=1))
        await until(lambda: here.report.revision == 1)
        await put(nats_client, config_of("a", revision=2, interval_ms=50))
        await until(lambda: here.report.revision == 2)
        await nats_client.jetstream().purge_stream(STREAM)
        await until(lambda: here.report.errors)


async def test_an_unchanged_bucket_is_not_read_again(
    nats_client: Client, following: Any, config_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cncmon_agent.config import bucket as module

    reads = []
    real = module.Bucket.read

    async def read(self: Any) -> Any:
        reads.append(time.monotonic())
        return await real(self)

    monkeypatch.setattr(module.Bucket, "read", read)
    await make_bucket(nats_client)
    await put(nats_client, config_of("a"))
    here = following(config_poll_ms=100)
    async with here.on(nats_client):
        await until(lambda: len(reads) == 2)
        await asyncio.sleep(0.5)
        assert len(reads) == 2


BAD: list[tuple[bytes, str]] = [
    (b"not json", "not JSON: "),
    (b"{}", "missing field `schema`"),
    (b'{"schema": 2, "revision": 5}', "2; this version reads 1: update the agent"),
]


@pytest.mark.parametrize(("data", "said"), BAD, ids=lambda value: str(value)[:30])
async def test_a_bad_document_is_refused_and_the_old_one_runs_on(
    nats_client: Client, following: Any, config_of: Any, data: bytes, said: str, tmp_path: Path
) -> None:
    await make_bucket(nats_client)
    here = following()
    async with here.on(nats_client):
        await put(nats_client, config_of("a", revision=1))
        await until(lambda: here.report.revision == 1)
        await put(nats_client, data)
        await until(lambda: here.report.errors)
        assert here.report.errors[0].problem.startswith(said)
        assert (here.report.revision, here.report.source, len(here.applied)) == (1, "kv", 1)
        assert here.report.refused_revision == (5 if b"revision" in data else None)
    again = following()
    await again.follower.start()
    assert again.report.revision == 1
    async with again.on(nats_client):
        await until(lambda: again.report.errors)
        assert again.report.source == "disk"
        await put(nats_client, config_of("a", revision=6))
        await until(lambda: again.report.revision == 6)
        assert (again.report.errors, again.report.refused_revision) == ([], None)


async def test_one_bad_machine_refuses_the_whole_document(nats_client: Client, following: Any, config_of: Any) -> None:
    await make_bucket(nats_client)
    here = following()
    async with here.on(nats_client):
        await put(nats_client, config_of("a", revision=1))
        await until(lambda: here.report.revision == 1)
        document = json.loads(edge_config.encode(config_of("a", "b", "c", revision=2)))
        document["machines"][1]["spec"]["pollIntervalMs"] = 0
        await put(nats_client, json.dumps(document).encode())
        await until(lambda: here.report.errors)
        (error,) = here.report.errors
        assert (error.machine, error.path) == ("b", "$.spec.pollIntervalMs")
        assert error.problem == "0: expected a whole number; allowed are 10 to 3600000"
        assert here.report.refused_revision == 2
        assert len(here.applied) == 1


async def test_a_deleted_key_or_bucket_changes_nothing_and_a_new_bucket_is_followed(
    nats_client: Client, following: Any, config_of: Any
) -> None:
    js = nats_client.jetstream()
    await make_bucket(nats_client)
    here = following(config_poll_ms=200)
    async with here.on(nats_client):
        for revision in range(1, 8):
            await put(nats_client, config_of("a", "b", revision=revision))
        await until(lambda: here.report.revision == 7)
        await (await js.key_value(names.KV_CONFIG)).delete(f"{SITE}.{EDGE}")
        await until(lambda: here.report.errors)
        assert here.report.errors[0].problem.endswith("revision 7 runs on")
        assert (here.report.source, len(here.applied)) == ("disk", 1)
        # The very same bytes once more are news now.
        await put(nats_client, config_of("a", "b", revision=7))
        await until(lambda: here.report.source == "kv")
        await put(nats_client, config_of("a", "b", revision=8))
        await until(lambda: here.report.revision == 8)
        assert (here.report.source, here.report.errors, len(here.applied)) == ("kv", [], 1)

        await js.delete_stream(STREAM)
        await until(lambda: here.report.errors)
        # Made anew by hand, nobody republishes; its revisions and sequences begin from 1.
        await make_bucket(nats_client, republish=False)
        await put(nats_client, config_of("a", revision=1))
        await until(lambda: here.report.revision == 1)
        assert [list(machines) for machines in here.applied] == [["a", "b"], ["a"]]
        assert here.report.errors == []


async def test_what_was_last_good_is_there_without_any_network(
    following: Any, nats_client: Client, config_of: Any
) -> None:
    await make_bucket(nats_client)
    first = following()
    async with first.on(nats_client):
        await put(nats_client, config_of("a", "b", revision=3))
        await until(lambda: first.report.revision == 3)
        await until(lambda: first.follower._to_keep is None)
    second = following()
    await second.follower.start()
    assert [list(machines) for machines in second.applied] == [["a", "b"]]
    assert (second.report.source, second.report.revision) == ("disk", 3)
    # Found to be the same once there is a connection: nothing is applied again, nor written.
    async with second.on(nats_client):
        await until(lambda: second.report.source == "kv")
        assert len(second.applied) == 1
        assert second.follower._to_keep is None


async def test_a_configuration_that_can_not_be_kept_is_used_and_said(
    nats_client: Client, following: Any, config_of: Any, tmp_path: Path
) -> None:
    await make_bucket(nats_client)
    (tmp_path / f"{FILE}.new").mkdir()
    here = following(config_poll_ms=100)
    async with here.on(nats_client):
        await put(nats_client, config_of("a", revision=1))
        await until(lambda: here.report.errors)
        assert here.report.errors[0].problem.startswith("can't be kept on disk, and is lost at a restart")
        assert len(here.applied) == 1
        (tmp_path / f"{FILE}.new").rmdir()
        await until(lambda: not here.report.errors)
    assert ConfigStore(tmp_path, SITE, EDGE).load() == config_of("a", revision=1)


async def test_without_a_folder_it_lives_in_memory(nats_client: Client, following: Any, config_of: Any) -> None:
    await make_bucket(nats_client)
    here = following(None)
    await here.follower.start()
    async with here.on(nats_client):
        await put(nats_client, config_of("a"))
        await until(lambda: here.report.revision == 1)


async def test_fixed_files_are_all_there_is(
    nats_client: Client, following: Any, config_of: Any, tmp_path: Path
) -> None:
    file = tmp_path / "machines.yaml"
    documents = [msgspec.to_builtins(machine) for machine in config_of("a", "b").machines]
    documents[1]["spec"]["pollIntervalMs"] = 0
    elsewhere = msgspec.to_builtins(config_of("c").machines[0])
    elsewhere["spec"]["edge"] = "other"
    file.write_text("\n---\n".join(json.dumps(document) for document in (*documents, elsewhere)))
    here = following(machines=(str(file),))
    await here.follower.start()
    assert [list(machines) for machines in here.applied] == [["a"]]
    assert (here.report.source, here.report.revision) == ("files", None)
    assert here.report.sha256 == config_of("a").sha256
    (error,) = here.report.errors
    assert (error.machine, error.path) == ("b", "$.spec.pollIntervalMs")
    assert error.problem.startswith(f"{file}:3: ")
    await asyncio.wait_for(here.follower.follow(nats_client), WAIT_S_MAX)


def kept(folder: Path) -> bytes:
    return (folder / FILE).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-10],
        lambda data: data.replace(b'"register":1', b'"register":2'),
        lambda data: data.replace(b'"sha256":"', b'"sha256":"0'),
        lambda data: b"\xff" + data,
        lambda data: data.replace(b'"edge":"edge"', b'"edge":"other"'),
    ],
)
async def test_a_damaged_file_is_not_used_and_said(following: Any, config_of: Any, tmp_path: Path, damage: Any) -> None:
    store = ConfigStore(tmp_path, SITE, EDGE)
    assert store.load() is None
    store.save(config_of("a", revision=3))
    assert store.load() == config_of("a", revision=3)
    (tmp_path / FILE).write_bytes(damage(kept(tmp_path)))
    with pytest.raises(ConfigError):
        store.load()
    here = following()
    await here.follower.start()
    assert here.applied == []
    assert FILE in here.report.errors[0].problem
    assert here.report.source == "none"


def test_another_edge_s_file_is_not_used(config_of: Any, tmp_path: Path) -> None:
    ConfigStore(tmp_path, SITE, EDGE).save(config_of("a"))
    with pytest.raises(ConfigError, match="this edge is 'moved'"):
        ConfigStore(tmp_path, SITE, "moved").load()


T = datetime(2026, 1, 1, tzinfo=UTC)


def at(seq: int, seconds: float) -> Version:
    return Version(seq, T + timedelta(seconds=seconds))


def test_a_lagging_replica_is_not_believed_and_a_restored_bucket_is() -> None:
    current = Current()
    assert current.believe(at(8, 8), 0)
    assert not current.believe(at(7, 7), 1)
    assert current.doubts
    assert current.believe(at(8, 8), 2)
    assert not current.doubts
    # It caught up and fell back: the doubt begins anew.
    assert not current.believe(at(7, 7), 100)
    assert not current.believe(at(7, 7), 100 + DOUBT_S - 0.1)
    assert current.believe(at(7, 7), 100 + DOUBT_S)
    assert current.believe(at(7, 7), 100 + DOUBT_S + 1)


def test_a_bucket_made_anew_is_believed_at_once() -> None:
    current = Current()
    assert current.believe(at(8, 8), 0)
    assert current.believe(at(1, 20), 0)
    assert current.believe(at(2, 21), 0)
    # A server whose clock went back still counts up.
    assert current.believe(at(3, -500), 0)


def test_a_doubt_is_about_one_value() -> None:
    current = Current()
    current.believe(at(8, 8), 0)
    assert not current.believe(at(6, 6), 10)
    assert not current.believe(at(5, 5), 10 + DOUBT_S)
    assert current.believe(at(9, 9), 11 + DOUBT_S)
