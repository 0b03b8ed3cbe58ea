"""Rule D6: what was carried from an edge on a stick is stored exactly once, beside what the edge delivers itself."""

import asyncio
import base64
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client

from cncmon_agent import batch as batches
from cncmon_agent.inspect.jsonl import JsonLines
from cncmon_agent.inspect.parquet import Parquet
from cncmon_agent.inspect.reading import Content
from cncmon_core import identity
from cncmon_core.frames import join
from cncmon_ingest import importer
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import MigrationError, OutageError
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.gaps import batch, gap_frame, gaps_of, watermark_of
from testkit.ingest import EPOCH, drained, frame, publish_batch, running_ingest, settings_for, until


class Header(msgspec.Struct):
    """As the agent writes it."""

    site: str = "hall"
    edge: str = "e1"
    cncmon_export: int = 1


def content(
    seq: int, parts: list[bytes], kind: identity.Kind = "samples", base: int = 0, epoch: int = EPOCH
) -> Content:
    created_ms = int(datetime.now(UTC).timestamp() * 1000)
    return Content(batches.make(epoch, seq, base, kind, parts, 3, created_ms), parts)


def written(path: Path, contents: list[Content], writer: type[JsonLines] | type[Parquet] = JsonLines) -> Path:
    with path.open("wb") as file:
        made = writer(file, Header())
        for item in contents:
            made.add(item)
        made.finish()
    return path


def samples(seq: int, number: int = 3) -> Content:
    return content(seq, [frame(10 * seq + n) for n in range(number)], base=(seq - 1) * number)


async def count(database: asyncpg.Connection, table: str = "sensor_data") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def run(dsn: str, *files: Path, **changes: Any) -> importer.Summary:
    return await importer.run(settings_for(dsn, **changes), files)


@on_both_servers
@pytest.mark.parametrize("writer", [JsonLines, Parquet])
async def test_delivery_d6_an_export_is_stored_once(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, writer: type[JsonLines] | type[Parquet]
) -> None:
    odd = frame(7, machine_id="Fräse \t1", extras={"a": [1, {"b": None}]}) + b" "
    path = written(
        tmp_path / "export",
        [
            *(samples(seq) for seq in range(1, 11)),
            content(11, [odd, b'{"machine_id":"m"}', frame(1)], base=30),
            content(12, [gap_frame(13, 20, 80)], "events", base=33),
        ],
        writer,
    )
    done = await run(postgres_dsn, path, fetch_messages=4)
    assert (done.batches_new, done.samples, done.frames_dead, done.damaged) == (12, 32, 1, 0)
    assert await count(database) == 32
    assert await gaps_of(database) == [(13, 20, 80)]
    await advance(database)
    assert await watermark_of(database) == 20
    assert tuple(await database.fetchrow("SELECT site, edge FROM watermarks") or ()) == ("hall", "e1")
    letter = await database.fetchrow("SELECT identity, frame, reason, payload, subject FROM dead_letters")
    assert letter is not None
    assert tuple(letter) == (f"{EPOCH}:11", 1, "missing_field", b'{"machine_id":"m"}', "CNC_DATA.hall.e1")

    again = await run(postgres_dsn, path)
    assert (again.batches_new, again.batches_known, again.samples) == (0, 12, 0)
    assert (await count(database), await count(database, "dead_letters")) == (32, 1)


@on_both_servers
async def test_delivery_d6_beside_what_the_edge_delivers_itself(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    contents = [samples(seq) for seq in range(1, 201)]
    path = written(tmp_path / "export", contents)
    async with running_ingest(nats_url, settings, workers=2):

        async def deliver() -> None:
            for item in reversed(contents[50:]):
                name = item.batch.identity
                await publish_batch(nats_client, name.seq, item.parts, base=name.base)

        await asyncio.gather(deliver(), run(postgres_dsn, path, fetch_messages=7), run(postgres_dsn, path))
        await until(lambda: drained(nats_client))
        await until(lambda: _reached(database, 200))
    assert await count(database) == 600
    assert await count(database, "dead_letters") == 0


async def _reached(database: asyncpg.Connection, seq: int) -> bool:
    return await watermark_of(database) == seq


async def test_delivery_d6_killed_at_any_moment_it_is_run_again(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    path = written(tmp_path / "export", [samples(seq) for seq in range(1, 101)])
    for step in range(12):
        task = asyncio.create_task(run(postgres_dsn, path, fetch_messages=3))
        await asyncio.sleep(0.004 * step)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    done = await run(postgres_dsn, path)
    assert done.batches_new + done.batches_known == 100
    assert await count(database) == 300


async def test_delivery_d6_a_batch_of_a_gap_is_taken_out_of_it(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    path = written(tmp_path / "declared", [content(1, [gap_frame(1, 3, 9)], "events", epoch=777)])
    await run(postgres_dsn, path)
    await advance(database)
    assert (await run(postgres_dsn, written(tmp_path / "export", [samples(2)]))).batches_new == 1
    assert await gaps_of(database) == [(1, 1, 3), (3, 3, 3)]


def line(number: int = 1, **changes: Any) -> bytes:
    """A sound line, with changes; a value of ... leaves a field out."""
    parts = [frame(number)]
    fields = {
        "site": "hall", "edge": "e1", "epoch": EPOCH, "seq": number, "base": number - 1, "kind": "samples",
        "sha256": identity.digest(join(parts)), "created_ms": 1_795_000_000_000,
        "frames": [msgspec.Raw(part) for part in parts],
    }  # fmt: skip
    return msgspec.json.encode({name: value for name, value in (fields | changes).items() if value is not ...})


DAMAGED = {
    "no JSON": b"{",
    "cut off": line(2)[:-20],
    "not an object": b"[]",
    "not UTF-8": line(2).replace(b"hall", b"h\xffll"),
    "a changed frame": line(2).replace(b"25", b"26", 1).replace(b"27.5", b"99.5", 1),
    "another hash": line(2, sha256="0" * 64),
    "no hash": line(2, sha256="A" * 64),
    "no frames": line(2, frames=...),
    "empty": line(2, frames=[]),
    "both forms": line(2, frames_base64=["e30="]),
    "not base64": line(2, frames=..., frames_base64=["*"]),
    "a seq of 0": line(2, seq=0),
    "a huge epoch": line(2, seq=1).replace(str(EPOCH).encode(), b"9223372036854775808"),
    "no kind of ours": line(2, kind="rumours"),
    "no site": line(2, site=""),
    "a site that is no name": line(2, site="a.b"),
    "a time beyond time": line(2, created_ms=10**18),
    "nested for ever": b"[" * 100_000,
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED)
async def test_delivery_d6_a_damaged_line_is_named_and_stops_nothing(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, bad: bytes
) -> None:
    path = tmp_path / "export"
    path.write_bytes(b'{"cncmon_export":1}\n' + b"\n".join((line(1), bad, b"", line(3))) + b"\n")
    done = await run(postgres_dsn, path)
    assert (done.batches_new, done.damaged) == (2, 1)
    assert done.damage[0].startswith(f"{path}, line 3: ")
    assert await count(database) == 2
    assert await count(database, "dead_letters") == 0, "it must not take the place of the sound one"
    path.write_bytes(line(2))
    assert (await run(postgres_dsn, path)).batches_new == 1, "a file without a header, and without a last line break"


async def test_delivery_d6_base64_frames(postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path) -> None:
    bad = b"no JSON\n\xff"
    parts = [bad, frame(1)]
    sha256 = identity.digest(join(parts))
    encoded = [base64.b64encode(part).decode() for part in parts]
    path = tmp_path / "export"
    path.write_bytes(line(1, frames=..., frames_base64=encoded, sha256=sha256) + b"\n")
    done = await run(postgres_dsn, path)
    assert (done.batches_new, done.samples, done.frames_dead) == (1, 1, 1)
    assert await database.fetchval("SELECT payload FROM dead_letters") == bad


async def test_delivery_d6_files_that_are_none(postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path) -> None:
    newer, rows, empty, sound = (tmp_path / name for name in ("newer", "rows", "empty", "sound"))
    newer.write_bytes(b'{"cncmon_export":2}\n' + line(1))
    rows.write_bytes(b"PAR1 and nothing more")
    empty.write_bytes(b"")
    sound.write_bytes(line(1))
    done = await run(postgres_dsn, tmp_path / "nowhere", tmp_path, newer, rows, empty, sound)
    assert (done.files, done.batches_new, done.damaged) == (6, 1, 4)
    assert "can't be read: No such file" in done.damage[0]
    assert "can't be read: Is a directory" in done.damage[1]
    assert "version 2" in done.damage[2]
    assert "is damaged" in done.damage[3]


async def test_delivery_d6_a_parquet_file_with_a_changed_row(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    from pyarrow import parquet  # type: ignore[import-untyped]  # ships no types

    path = written(tmp_path / "export", [samples(seq) for seq in range(1, 6)], Parquet)
    table = parquet.read_table(path).to_pylist()
    table[4]["raw"] = frame(99)
    del table[8]
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(table), path)
    done = await run(postgres_dsn, path)
    assert (done.batches_new, done.damaged) == (3, 2)
    assert [said.split(": ")[0].rsplit(", ")[-1] for said in done.damage] == ["row 4", "row 7"]


async def test_delivery_d6_the_same_identity_with_other_bytes_is_kept_as_a_dead_letter(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    # seq 2 stays in the ledger: seq 1 is missing.
    await run(postgres_dsn, written(tmp_path / "one", [samples(2)]))
    done = await run(postgres_dsn, written(tmp_path / "other", [content(2, [frame(77)])]))
    assert (done.batches_new, done.batches_known, done.batches_dead) == (0, 0, 1)
    assert await database.fetchval("SELECT reason FROM dead_letters") == "identity_conflict"


async def test_delivery_d6_the_name_that_an_epoch_has_now_stays(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    now = samples(1)
    earlier = now._replace(batch=msgspec.structs.replace(now.batch, created_ms=now.batch.created_ms - 60_000))
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    await store.write([batch(5, edge="old")])
    await store.write([batch(6, edge="renamed")])
    store.close()
    await run(postgres_dsn, written(tmp_path / "export", [earlier]))
    assert await database.fetchval("SELECT edge FROM watermarks") == "renamed"


async def test_delivery_d6_no_database_and_an_older_schema_are_told(
    postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    path = written(tmp_path / "export", [samples(1)])
    with pytest.raises(OutageError):
        await run("postgresql://nobody@127.0.0.1:1/nothing", path)
    await database.execute("DELETE FROM schema_migrations WHERE number > 1")
    with pytest.raises(MigrationError, match="schema is at migration 1, this program needs"):
        await run(postgres_dsn, path)


def test_a_sound_line_is_what_the_agent_writes(tmp_path: Path) -> None:
    path = written(tmp_path / "export", [samples(1, 1)])
    said = json.loads(path.read_bytes().splitlines()[1])
    assert set(said) == set(json.loads(line()))
