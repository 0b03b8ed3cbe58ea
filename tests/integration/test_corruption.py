"""The corruption cases of the original system: real bytes through real JetStream into the real table."""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core.frames import join
from testkit.fixtures import on_both_servers
from testkit.ingest import drained, frame, prepare, publish_plain, running_ingest, settings_for, until

pytestmark = on_both_servers


def _soon(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


GOOD = frame(1)
WITHOUT_ZONE = "2026-06-02T12:00:00"

# name, payload or how to make it when the test runs, rows stored, [(frame, reason)]
CASES: list[tuple[str, bytes | Callable[[], bytes], int, list[tuple[int, str]]]] = [
    ("one good frame, as the original sends it", join([GOOD]), 1, []),
    ("JSON cut short", join([GOOD[:-20]]), 0, [(0, "malformed_json")]),
    ("NUL bytes", join([b"\0" * 40]), 0, [(0, "malformed_json")]),
    ("NUL inside the JSON", join([GOOD.replace(b"cnc-001", b"cnc\0001")]), 0, [(0, "malformed_json")]),
    ("an escaped NUL in a text", join([frame(program="O1\0")]), 0, [(0, "nul_character")]),
    ("an escaped NUL in extras", join([frame(note={"a": ["\0"]})]), 0, [(0, "nul_character")]),
    ("zero-length frame", join([b""]), 0, [(0, "zero_length")]),
    ("zero-length frame between good ones", join([GOOD, b"", GOOD]), 2, [(1, "zero_length")]),
    ("length prefix beyond the payload", struct.pack(">I", 5000) + GOOD, 0, [(0, "truncated_frame")]),
    ("length prefix beyond the payload after a good frame", join([GOOD]) + b"\0\0\1\0{", 1, [(1, "truncated_frame")]),
    ("trailing bytes", join([GOOD]) + b"\1\2", 1, [(1, "trailing_bytes")]),
    ("2 GiB length", struct.pack(">I", 2**31) + GOOD, 0, [(0, "frame_too_large")]),
    ("4 GiB length", b"\xff\xff\xff\xff", 0, [(0, "frame_too_large")]),
    ("a length and nothing else", b"\0\0", 0, [(0, "trailing_bytes")]),
    ("no bytes at all", b"", 0, [(-1, "empty_message")]),
    ("more than 10,000 frames", join([b"{}"] * 10_001), 0, [(-1, "too_many_frames")]),
    (
        "the original's malformed machine",
        join([b'{"machine_id": "CNC-MALFORMED", "temperature": "not-a-float"}']),
        0,
        [(0, "invalid_field")],
    ),
    ("NaN", join([GOOD.replace(b"7.25", b"NaN")]), 0, [(0, "not_finite")]),
    ("Infinity", join([GOOD.replace(b"7.25", b"-Infinity")]), 0, [(0, "not_finite")]),
    ("1e999", join([GOOD.replace(b"7.25", b"1e999")]), 0, [(0, "not_finite")]),
    ("a timestamp in the future", lambda: join([frame(timestamp=_soon(minutes=20))]), 0, [(0, "future_timestamp")]),
    ("a timestamp a little ahead", lambda: join([frame(timestamp=_soon(minutes=2))]), 1, []),
    ("a timestamp without zone", join([frame(timestamp=WITHOUT_ZONE)]), 0, [(0, "naive_timestamp")]),
    ("a timestamp with another zone", join([frame(timestamp="2024-05-01T12:00:00+02:00")]), 1, []),
    ("unknown fields", join([frame(coolant_bar=4.5, operator="kim")]), 1, []),
    ("unknown state", join([frame(machine_state="dancing")]), 1, []),
    ("a missing field", join([b'{"machine_id": "a", "timestamp": "2024-05-01T12:00:00Z"}']), 0, [(0, "missing_field")]),
    ("no object", join([b"[1, 2]"]), 0, [(0, "malformed_json")]),
    ("an integer out of range", join([frame(part_count=2**63)]), 0, [(0, "invalid_field")]),
    ("a fraction where a whole number is meant", join([frame(part_count=1.5)]), 0, [(0, "invalid_field")]),
    ("machine_id too long", join([frame(machine_id="m" * 129)]), 0, [(0, "invalid_field")]),
    ("machine_id empty", join([frame(machine_id="")]), 0, [(0, "invalid_field")]),
    ("machine_id too long in bytes", join([frame(machine_id="é" * 100)]), 0, [(0, "invalid_field")]),
    ("a text of 900 kB", join([frame(note="n" * 900_000)]), 0, [(0, "too_large")]),
    ("a lone surrogate", join([GOOD.replace(b"running", b"\\ud800")]), 0, [(0, "malformed_json")]),
    ("not UTF-8", join([GOOD.replace(b"running", b"\xff\xfe")]), 0, [(0, "malformed_json")]),
    ("nested a thousand deep", join([b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"]), 0, [(0, "malformed_json")]),
    (
        "1 bad frame among 500",
        join([frame(n) if n != 250 else b'{"machine_id": 7}' for n in range(500)]),
        499,
        [(250, "invalid_field")],
    ),
]


@pytest.mark.parametrize(("payload", "stored", "dead"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_corruption(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    payload: bytes | Callable[[], bytes],
    stored: int,
    dead: list[tuple[int, str]],
) -> None:
    if callable(payload):
        payload = payload()
    settings = settings_for(postgres_dsn)
    await prepare(nats_client, settings)
    await publish_plain(nats_client, payload)
    await publish_plain(nats_client, join([frame(7, machine_id="after")]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))

    assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id <> 'after'") == stored
    assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'after'") == 1
    letters = await database.fetch("SELECT frame, reason, payload FROM dead_letters ORDER BY frame")
    assert [(row["frame"], row["reason"]) for row in letters] == dead
    for row in letters:
        assert row["payload"] in payload
        if row["frame"] < 0:
            assert row["payload"] == payload


async def test_what_is_unknown_is_kept_in_extras(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await prepare(nats_client, settings)
    await publish_plain(nats_client, join([frame(coolant_bar=4.5, machine_state="dancing", extras={"a": 1})]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    row: Any = await database.fetchrow("SELECT machine_state, extras FROM sensor_data")
    assert row["machine_state"] is None
    assert row["extras"] == '{"a": 1, "coolant_bar": 4.5, "machine_state": "dancing"}'
