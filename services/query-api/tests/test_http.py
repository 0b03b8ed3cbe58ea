"""What holds for every route: problems, limits, headers, metrics, the OpenAPI document."""

import asyncio
import socket
from datetime import UTC, datetime

import asyncpg
import pytest

from cncmon_api.database import Database
from testkit.waiting import WAIT_S_MAX


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/nothing.js", 404),
        ("GET", "/../../etc/passwd.txt", 404),
        ("GET", "/api/v1/machines/nobody/samples", 404),
        ("POST", "/api/v1/machines", 405),
        ("DELETE", "/api/v1/machines/m1/samples", 405),
        ("PUT", "/", 405),
    ],
)
async def test_errors_are_problems(api, method, path, status):
    answer = await api.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail", "instance"))
    if status == 405:
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/openapi.json", "/api/v1/machines", "/api/v1/live"])
async def test_head_is_get_without_its_bytes(api, path):
    answer = await api.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    if path not in ("/api/v1/live", "/metrics", "/healthz"):
        whole = await api.get(path)
        assert answer.headers["content-type"] == whole.headers["content-type"]
    assert (await api.json("/api/v1/status"))["live_clients"] == 0


async def test_head_of_what_is_not_there(api):
    for path, status in {"/api/v1/nothing": 404, "/api/v1/machines/nobody/samples": 404, "/nothing.js": 404}.items():
        answer = await api.http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")


@pytest.mark.parametrize("path", ["/", "/readyz", "/openapi.json", "/api/v1/machines", "/api/v1/machines/m1/samples"])
async def test_options_name_what_is_possible(api, path):
    answer = await api.http.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("machines?form=2026-11-24T10:00:00Z", "'form' is no parameter: allowed are after, limit."),
        ("edges?site=hall", "'site' is no parameter: there are none at this path."),
        ("machines/m1/samples?to=", "to='' is no time: write RFC 3339"),
        ("machines/m1/states?from=", "from='' is no time: write RFC 3339"),
        (
            "machines/m1/series?fields=temperature&field=",
            "'field' is no parameter: allowed are fields, from, points, to.",
        ),
        ("machines/m1/series?to=2026-11-24T10:00:00Z&to=2026-11-25T10:00:00Z", "to is there 2 times: once is enough."),
        ("machines/m1/samples?cursor=", "cursor"),
        ("live?machines=", "machines is empty: name some"),
    ],
)
async def test_a_query_that_is_misspelt_is_no_query_for_all(api, query, said):
    answer = await api.http.get(f"/api/v1/{query}")
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8480", 200),
        ("[::1]:8480", 200),
        ("[fe80::1]", 200),
        ("192.168.4.7", 200),
        ("localhost:8480", 200),
        ("plant-pc", 200),
        ("Plant-PC.local:8480", 200),
        ("plant-cnc-monitor-api.cnc.svc:8080", 200),
        ("wall.plant.example", 200),
        ("WALL.plant.example.:443", 200),
        ("a.hall.example", 200),
        ("hall.example", 421),
        ("plant.example", 421),
        ("evil.example:8480", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example]:80", 421),
    ],
)
async def test_a_name_that_anybody_could_have_is_no_name_of_ours(start_api, host, status):
    api = await start_api(hosts=("wall.plant.example", "*.Hall.example"))
    for path in ("/", "/api/v1/machines"):
        answer = await api.http.get(path, headers={"Host": host})
        assert answer.status_code == status
    if status == 421:
        assert answer.headers["content-type"] == "application/problem+json"
        assert "CNCMON_API_HOSTS" in answer.json()["detail"]


async def test_an_internal_error_tells_nothing(start_api, monkeypatch):
    api = await start_api(idle_tick_ms=60_000)

    fetch = Database.fetch

    async def fail(self, sql, *args):
        # The routes' own queries alone: the poller, which may be asking just now, must not meet it.
        if "machine_id = $1" in sql:
            raise ZeroDivisionError("secret of the house")
        return await fetch(self, sql, *args)

    monkeypatch.setattr(Database, "fetch", fail)
    answer = await api.get("/api/v1/machines/m1/samples")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


async def raw(api, *parts: bytes, pause_s: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(pause_s)
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S_MAX)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_bytes_that_are_no_http_get_a_problem(api):
    answer = await raw(api, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n", id="half a head"),
        pytest.param(b"GET /api/v1/live HTTP/1.1\r\nContent-Length: 9\r\n\r\n", id="no body"),
    ],
)
async def test_a_request_that_does_not_arrive_is_cut_off(start_api, begin):
    api = await start_api(header_timeout_ms=300)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await raw(api, begin)  # ends because the service closes it
    assert loop.time() - begun > 0.2


async def test_a_second_request_on_a_connection_has_the_same_limit(start_api):
    api = await start_api(header_timeout_ms=300)
    answer = await raw(api, b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /api", pause_s=0.1)
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_a_live_stream_outlives_the_limit_for_heads(start_api):
    api = await start_api(header_timeout_ms=200)
    async with api.live() as stream:
        await stream.event("machines")
        with pytest.raises(TimeoutError):
            await stream.event(timeout=1)
        assert (await api.json("/api/v1/status"))["live_clients"] == 1


async def test_connections_beyond_the_limit_get_a_problem(start_api):
    api = await start_api(connections_max=8)
    held = [socket.create_connection(("127.0.0.1", api.port)) for _ in range(8)]
    await asyncio.sleep(0.1)
    answer = await raw(api)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer
    for connection in held:
        connection.close()
    await asyncio.sleep(0.1)
    assert (await api.get("/healthz")).status_code == 200


async def test_requests_beyond_the_limit_are_refused_while_probes_answer(start_api, database_dsn):
    api = await start_api(concurrent_requests_max=3, pool_size=4, idle_tick_ms=60_000)
    blocker = await asyncpg.connect(database_dsn)
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(api.get("/api/v1/machines/m1/samples")) for _ in range(3)]
        await asyncio.sleep(0.3)
        refused = await api.get("/api/v1/machines/m1/samples")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["title"] == "Too many requests at once"
        assert (await api.get("/healthz")).status_code == 200
    assert {(await task).status_code for task in waiting} == {404}
    await blocker.close()


async def test_a_flood_is_answered_or_refused(start_api, store):
    api = await start_api(concurrent_requests_max=16)
    await store.machines("m1")
    request = b"GET /api/v1/machines/m1/series HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = await asyncio.gather(*(raw(api, request) for _ in range(500)))
    assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert (await api.get("/api/v1/machines")).status_code == 200


async def test_security_headers_on_every_answer(api):
    for path in ("/", "/api/v1/machines", "/api/v1/nothing", "/healthz"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["referrer-policy"] == "same-origin"
        assert "server" not in headers


async def test_other_origins_only_where_the_setting_names_them(start_api):
    origin = {"Origin": "https://wall.example"}
    closed = await (await start_api()).http.get("/api/v1/status", headers=origin)
    assert "access-control-allow-origin" not in closed.headers
    open_ = await start_api(cors_origins=("https://wall.example",))
    answer = await open_.http.get("/api/v1/status", headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://wall.example"
    other = await open_.http.get("/api/v1/status", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_metrics_count_by_route_template(api):
    for number in range(3):
        await api.get(f"/api/v1/machines/guess-{number}/samples")
        await api.get(f"/nowhere/{number}.txt")
    text = (await api.get("/metrics")).text
    assert 'route="/api/v1/machines/{machine_id}/samples",status="404"' in text
    assert "guess-" not in text
    assert "nowhere" not in text
    assert "cncmon_api_database_up 1.0" in text


def check(schema: dict, value, document: dict, path: str = "$") -> None:
    """Validate a JSON value against the part of JSON Schema that our document uses; any other keyword is an error."""
    if "$ref" in schema:
        return check(document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], value, document, path)
    known = {"title", "description", "type", "properties", "required", "items", "anyOf", "enum", "additionalProperties",
             "format", "minimum", "maximum", "pattern"}  # fmt: skip
    assert set(schema) <= known, (path, schema)
    if "anyOf" in schema:
        errors = []
        for choice in schema["anyOf"]:
            try:
                return check(choice, value, document, path)
            except AssertionError as error:
                errors.append(error)
        raise AssertionError(path, value, errors)
    if "enum" in schema:
        assert value in schema["enum"], (path, value)
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema:
        assert isinstance(value, types[schema["type"]]), (path, value, schema)
        assert not (isinstance(value, bool) and schema["type"] != "boolean"), (path, value, schema)
    if schema.get("format") == "date-time":
        assert datetime.fromisoformat(value).utcoffset() is not None
    if isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert set(schema.get("required", ())) <= set(value), (path, value)
        assert not properties or set(value) <= set(properties), (path, set(value) - set(properties))
        for name, item in value.items():
            check(properties.get(name, rest if isinstance(rest, dict) else {}), item, document, f"{path}.{name}")
    for number, item in enumerate(value if isinstance(value, list) else []):
        check(schema.get("items", {}), item, document, f"{path}[{number}]")
    return None


async def test_the_document_describes_the_bytes(api, store):
    document = await api.json("/openapi.json")
    assert document["openapi"].startswith("3.1.")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    await store.machines("m1", "m2")
    values = {"temperature": 20.0, "machine_state": "running", "mode": "AUTOMATIC", "extras": '{"a": [1, "b"]}'}
    await store.samples({"machine_id": "m1", "time": datetime.now(UTC)} | values)
    await asyncio.sleep(0.2)
    for path, operations in document["paths"].items():
        responses = operations["get"]["responses"]
        assert "422" not in responses
        if path == "/api/v1/live":
            continue
        url = path.replace("{machine_id}", "m1")
        check(responses["200"]["content"]["application/json"]["schema"], await api.json(url), document)
        for code, bad in {"400": f"{url}?from=x&limit=x", "404": path.replace("{machine_id}", "none")}.items():
            if code in responses:
                answer = await api.http.get(bad)
                assert str(answer.status_code) == code
                check(responses[code]["content"]["application/problem+json"]["schema"], answer.json(), document)
    schemas = {"machines": "MachineInfos", "samples": "LiveSamples"}
    async with api.live() as stream:
        for name, schema in schemas.items():
            check(document["components"]["schemas"][schema], (await stream.event(name)).data, document)


async def test_every_reference_of_the_document_resolves(api):
    document = await api.json("/openapi.json")

    def walk(node) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rsplit("/", 1)[-1] in document["components"]["schemas"]
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(document)
    names = {p["name"]: p for p in document["paths"]["/api/v1/machines/{machine_id}/samples"]["get"]["parameters"]}
    assert set(names) == {"machine_id", "from", "to", "limit", "cursor", "if-none-match"}
    assert (names["limit"]["schema"]["minimum"], names["limit"]["schema"]["maximum"]) == (1, 10_000)
