"""GET /api/v1/edges: what the last heartbeats told, whatever the agents' versions."""

import json
from datetime import UTC, datetime, timedelta

import pytest

BUFFER = {
    "batches": 7, "samples": 70, "bytes": 5000, "capacity_bytes": 10**9, "oldest_age_s": 3.5, "unacked_batches": 2,
    "hours_left": 41.25, "memory_only": False, "hot_bytes": 1, "warm_bytes": 2, "cold_bytes": 3, "dropped_samples": 0,
    "quarantined_records": 0,
}  # fmt: skip
CONFIG = {
    "revision": 4, "sha256": "ab", "source": "kv",
    "errors": [{"machine": "m1", "path": "spec.pollIntervalMs", "problem": "0: at least 10"}],
}  # fmt: skip
DOCUMENT = {
    "version": "0.1.0",
    "buffer": BUFFER,
    "config": CONFIG,
    "clock": {"known": True, "steps": 1, "waiting_samples": 0},
    "problems": ["the disk is full"],
    "machines": [{"id": "a", "state": "connected"}, {"id": "b", "state": "offline"}, {"id": "c", "state": "connected"}],
    "of a later version": {"x": 1},
}


async def heartbeat(store, edge: str, document: object, age_s: float = 0.0, site: str = "hall") -> None:
    moment = datetime.now(UTC) - timedelta(seconds=age_s)
    await store.connection.execute(
        "INSERT INTO edges (site, edge, boot_id, time, received, document) VALUES ($1, $2, 'boot', $3, $3, $4)",
        *(site, edge, moment, json.dumps(document)),
    )


async def test_an_edge_with_all_its_parts(api, store):
    await heartbeat(store, "e1", DOCUMENT)
    answer = await api.json("/api/v1/edges")
    (edge,) = answer["edges"]
    assert abs(datetime.fromisoformat(answer["now"]) - datetime.fromisoformat(edge.pop("received"))) < timedelta(
        seconds=5
    )
    del edge["time"]
    assert edge == {
        "site": "hall", "edge": "e1", "boot_id": "boot", "version": "0.1.0", "stale": False, "buffer": BUFFER,
        "config": CONFIG, "clock": DOCUMENT["clock"], "problems": ["the disk is full"],
        "machines": {"connected": 2, "connecting": 0, "offline": 1},
    }  # fmt: skip


async def test_sorted_and_stale(start_api, store):
    api = await start_api(edge_stale_after_ms=10_000)
    for site, edge, age_s in (("hall", "e2", 0), ("annex", "e9", 11), ("hall", "e1", 9)):
        await heartbeat(store, edge, {}, age_s, site)
    found = (await api.json("/api/v1/edges"))["edges"]
    assert [(item["site"], item["edge"], item["stale"]) for item in found] == [
        ("annex", "e9", True),
        ("hall", "e1", False),
        ("hall", "e2", False),
    ]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"version": 1, "buffer": [], "config": "?", "clock": 7, "problems": "none", "machines": "many"},
        {"buffer": {"batches": "seven"}, "problems": [1], "machines": [1, {"state": 5}, None, {}]},
        {"version": None, "buffer": None, "config": None, "clock": None, "problems": None, "machines": None},
    ],
    ids=["nothing", "other types", "other types within", "null"],
)
async def test_parts_of_another_shape_are_null(api, store, document):
    await heartbeat(store, "e1", document)
    (edge,) = (await api.json("/api/v1/edges"))["edges"]
    assert {name: edge[name] for name in ("version", "buffer", "config", "clock", "problems")} == {
        "version": None, "buffer": None, "config": None, "clock": None, "problems": [],
    }  # fmt: skip
    assert edge["machines"] == {"connected": 0, "connecting": 0, "offline": 0}


async def test_an_older_agents_buffer(api, store):
    await heartbeat(store, "e1", {"buffer": {"batches": 7}})
    (edge,) = (await api.json("/api/v1/edges"))["edges"]
    assert edge["buffer"] == dict.fromkeys(BUFFER) | {"batches": 7}


async def test_no_edges_no_table_and_no_right_to_read_it_are_an_empty_list(start_api, store, database_dsn):
    api = await start_api()
    assert (await api.json("/api/v1/edges"))["edges"] == []
    await heartbeat(store, "e1", DOCUMENT)
    # Databases are dropped between runs, roles stay.
    await store.connection.execute(
        "DO $$ BEGIN CREATE ROLE reader LOGIN PASSWORD 'reads'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    await store.connection.execute("GRANT SELECT ON sensor_data, machines TO reader")
    head, _, rest = database_dsn.partition("@")
    limited = await start_api(database_dsn=f"{head.partition('://')[0]}://reader:reads@{rest}")
    assert (await limited.json("/api/v1/edges"))["edges"] == []
    assert (await limited.json("/api/v1/status"))["database"]["ok"]
    await store.connection.execute("DROP OWNED BY reader; DROP ROLE reader")
    await store.connection.execute("DROP TABLE edges")
    assert (await api.json("/api/v1/edges"))["edges"] == []
    assert (await api.json("/api/v1/status"))["database"]["ok"]


async def test_the_database_away_is_a_503(start_api, monkeypatch):
    api = await start_api(database_dsn="postgresql://nobody@127.0.0.1:1/nothing")
    answer = await api.get("/api/v1/edges")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")


async def test_the_document_describes_an_edge(api, store):
    schemas = (await api.json("/openapi.json"))["components"]["schemas"]
    assert set(schemas["Edge"]["required"]) == set(schemas["Edge"]["properties"])
    assert set(schemas["EdgeBuffer"]["properties"]) == set(BUFFER)
