import asyncio
import json

import pytest

from cncmon_core.errors import SettingsError
from cncmon_simulator import running
from cncmon_simulator.metrics import FleetMetrics

pytestmark = pytest.mark.virtual_time

NAME = "cnc-001"


async def raw(port: int, request: bytes) -> tuple[int, dict]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def call(port: int, method: str, path: str, body: object = None) -> tuple[int, dict]:
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return await raw(port, head.encode() + content)


@pytest.fixture
async def simulator(settings):
    async with running(settings(machines=3, control_port=0)) as simulator:
        yield simulator


async def test_list_and_set_and_clear(simulator, connected) -> None:
    port = simulator.control_port
    async with connected(simulator, NAME) as client:
        await client.read_holding_registers(100, count=39)
    status, body = await call(port, "GET", "/machines")
    assert status == 200
    assert [m["id"] for m in body["machines"]] == ["cnc-001", "cnc-002", "cnc-003"]
    host, machine_port, unit = simulator.fleet.address(NAME)
    assert body["machines"][0] == {
        "id": NAME,
        "host": host,
        "port": machine_port,
        "unit_id": unit,
        "state": "running",
        "counter": 1,
        "faults": [],
    }
    status, body = await call(port, "POST", f"/machines/{NAME}/faults", {"fault": "exception", "registers": [106, 106]})
    assert (status, body["machines"][0]["faults"]) == (200, [{"fault": "exception", "registers": [106, 106]}])
    async with connected(simulator, NAME) as client:
        assert (await client.read_holding_registers(100, count=39)).exception_code == 4
    assert (await call(port, "GET", "/machines/cnc-002"))[1]["faults"] == []
    await call(port, "POST", "/machines/*/faults", {"fault": "off"})
    status, body = await call(port, "GET", "/machines")
    assert {m["state"] for m in body["machines"]} == {"offline"}
    await call(port, "DELETE", "/machines/*/faults/off")
    status, body = await call(port, "GET", f"/machines/{NAME}")
    assert (body["state"], [f["fault"] for f in body["faults"]]) == ("running", ["exception"])
    status, body = await call(port, "DELETE", f"/machines/{NAME}/faults")
    assert (status, body["machines"][0]["faults"]) == (200, [])


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/", None, 404, "GET /machines"),
        ("GET", "/machines/nope", None, 404, "there are cnc-001, cnc-002, cnc-003"),
        ("POST", "/machines/nope/faults", {"fault": "drop"}, 404, "no machine 'nope'"),
        ("POST", f"/machines/{NAME}/faults", {"fault": "nope"}, 400, "late, drop, exception"),
        ("POST", f"/machines/{NAME}/faults", b"{", 400, "the body is no JSON"),
        ("POST", f"/machines/{NAME}/faults", b"\xff\xff", 400, "the body is no JSON"),
        ("POST", f"/machines/{NAME}/faults", b"[" * 9000, 400, "the body is no JSON"),
        ("POST", f"/machines/{NAME}/faults", [], 400, "must be a JSON object"),
        ("POST", f"/machines/{NAME}/faults", None, 400, "no JSON"),
        ("POST", f"/machines/{NAME}/faults", b"x" * 20_000, 413, "at most 16384 bytes"),
        ("DELETE", f"/machines/{NAME}/faults/nope", None, 400, "a fault is one of"),
        ("PUT", "/machines", None, 405, "GET /machines"),
    ],
)
async def test_bad_requests_say_what_is_allowed(simulator, method, path, body, status, said) -> None:
    got, problem = await call(simulator.control_port, method, path, body)
    assert (got, problem["status"]) == (status, status)
    assert said in problem["detail"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /machines HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /machines/*/faults HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /machines/*/faults HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"POST /machines/*/faults HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
    ],
)
async def test_bad_http(simulator, request_: bytes, status: int) -> None:
    assert (await raw(simulator.control_port, request_))[0] == status
    assert (await call(simulator.control_port, "GET", "/machines"))[0] == 200


async def test_a_port_in_use_is_named(simulator, settings) -> None:
    with pytest.raises(SettingsError, match=f"port {simulator.control_port} of .*CNCMON_SIMULATOR_CONTROL_PORT"):
        async with running(settings(control_port=simulator.control_port)):
            pass


async def test_metrics_count_polls_and_faults(simulator, connected) -> None:
    async with connected(simulator, NAME) as client:
        await client.read_holding_registers(100, count=39)
    await call(simulator.control_port, "POST", f"/machines/{NAME}/faults", {"fault": "off"})
    metrics = {m.name: m.samples[0].value for m in FleetMetrics(simulator.fleet).collect()}
    assert metrics == {
        "cncmon_simulator_polls": 1,
        "cncmon_simulator_machines": 3,
        "cncmon_simulator_machines_with_faults": 1,
    }
