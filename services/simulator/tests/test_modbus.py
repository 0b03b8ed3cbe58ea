import asyncio
import struct
from pathlib import Path

import pytest
from pymodbus.client import AsyncModbusTcpClient

from cncmon_core import machine_files
from cncmon_simulator import poll_log, running

pytestmark = pytest.mark.virtual_time

FIRST, COUNT = 100, 39


async def read_all(client: AsyncModbusTcpClient, unit: int = 1) -> list[int]:
    answer = await client.read_holding_registers(FIRST, count=COUNT, device_id=unit)
    assert not answer.isError(), answer
    return answer.registers


@pytest.mark.parametrize("behaviour", ["reference", "shop"])
async def test_what_a_client_reads_is_what_the_log_says(
    tmp_path: Path, settings, connected, decode, clock, behaviour: str
) -> None:
    log = tmp_path / "polls.jsonl"
    async with running(settings(behaviour=behaviour, machines=5, poll_log=str(log)), clock) as simulator:
        signals = simulator.fleet.profile.spec.signals
        seen = []
        for name in simulator.fleet.machines:
            async with connected(simulator, name) as client:
                for _ in range(40):
                    clock.now_s += 1.7
                    seen.append((name, decode(signals, FIRST, await read_all(client))))
    records = list(poll_log.read(log))
    assert [(r.machine_id, r.values) for r in records] == seen
    assert [r.counter for r in records] == [*range(1, 41)] * 5
    assert all(r.counter == r.values["poll_counter"] and r.fault is None for r in records)
    times = [r.t_ns for r in records]
    assert times == sorted(times)


async def test_the_record_is_there_before_the_answer(tmp_path: Path, settings, connected) -> None:
    log = tmp_path / "polls.jsonl"
    async with running(settings(poll_log=str(log))) as simulator, connected(simulator, "cnc-001") as client:
        await read_all(client)
        simulator.fleet.flush()
        assert [r.counter for r in poll_log.read(log)] == [1]


async def test_a_poll_in_pieces_is_of_one_moment(settings, connected, decode, clock) -> None:
    async with running(settings(), clock) as simulator, connected(simulator, "cnc-001") as client:
        clock.now_s = 10.0
        pieces = []
        for first, count in ((100, 7), (107, 20), (127, 12)):
            pieces += (await client.read_holding_registers(first, count=count)).registers
            clock.now_s += 1
        machine = simulator.fleet.machines["cnc-001"]
        assert machine.counter == 1
        values = decode(simulator.fleet.profile.spec.signals, FIRST, pieces)
        assert values["x_pos_mm"] == 150.0
        assert values["poll_counter"] == 1
        # Half of the counter is no poll.
        for first, count in ((101, 10), (100, 1)):
            assert not (await client.read_holding_registers(first, count=count)).isError()
        assert machine.counter == 1


@pytest.mark.parametrize(("address", "count"), [(99, 1), (99, 40), (138, 2), (139, 1), (0, 125), (65535, 1)], ids=str)
async def test_registers_that_are_not_there(settings, connected, address: int, count: int) -> None:
    async with running(settings()) as simulator, connected(simulator, "cnc-001") as client:
        answer = await client.read_holding_registers(address, count=count)
        assert answer.exception_code == 2
        assert simulator.fleet.machines["cnc-001"].counter == 0


async def test_other_functions_are_refused(settings, connected) -> None:
    async with running(settings()) as simulator, connected(simulator, "cnc-001") as client:
        assert (await client.read_input_registers(100, count=1)).exception_code == 1
        assert (await client.read_coils(0, count=1)).exception_code == 1
        assert (await client.write_register(100, 1)).exception_code == 1
        await read_all(client)


def request(transaction: int, address: int = FIRST, count: int = COUNT, unit: int = 1) -> bytes:
    return struct.pack(">HHHBBHH", transaction, 0, 6, unit, 3, address, count)


async def test_requests_in_one_segment_and_in_pieces(settings) -> None:
    async with running(settings()) as simulator:
        host, port, _ = simulator.fleet.address("cnc-001")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(1) + request(2) + request(3)[:5])
        for transaction in (1, 2):
            answer = await reader.readexactly(9 + 2 * COUNT)
            assert answer[:9] == struct.pack(">HHHBBB", transaction, 0, 3 + 2 * COUNT, 1, 3, 2 * COUNT)
        await asyncio.sleep(0.02)
        writer.write(request(3)[5:])
        assert (await reader.readexactly(9 + 2 * COUNT))[:2] == b"\0\3"
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">HHHB", 1, 0, 1, 1), struct.pack(">HHHB", 1, 0, 255, 1), b"\xff" * 300],
    ids=["http", "too short", "too long", "noise"],
)
async def test_what_is_no_modbus_ends_the_connection(settings, garbage: bytes) -> None:
    async with running(settings()) as simulator:
        host, port, _ = simulator.fleet.address("cnc-001")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(garbage)
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()


@pytest.mark.parametrize("pdu", [b"\3", b"\3\0\x64\0", b"\3\0\x64\0\0", b"\3\0\x64\0\x7e", b"\3\0\x64\0\1\0"], ids=repr)
async def test_malformed_requests_get_an_exception(settings, pdu: bytes) -> None:
    async with running(settings()) as simulator:
        host, port, _ = simulator.fleet.address("cnc-001")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(struct.pack(">HHHB", 5, 0, 1 + len(pdu), 9) + pdu)
        assert await reader.readexactly(9) == struct.pack(">HHHBBB", 5, 0, 3, 9, 0x83, 3)
        writer.close()


async def test_connections_are_bounded(settings) -> None:
    async with running(settings()) as simulator:
        host, port, _ = simulator.fleet.address("cnc-001")
        held = [await asyncio.open_connection(host, port) for _ in range(32)]
        reader, writer = await asyncio.open_connection(host, port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 2)
        writer.close()
        held[0][1].write(request(1))
        assert len(await held[0][0].readexactly(9 + 2 * COUNT)) == 87
        for _, w in held:
            w.close()


async def test_unit_ids_behind_one_port(settings, connected, decode) -> None:
    async with running(settings(machines=20, addressing="unit_ids", behaviour="shop")) as simulator:
        signals = simulator.fleet.profile.spec.signals
        addresses = {simulator.fleet.address(name) for name in simulator.fleet.machines}
        assert {unit for _, _, unit in addresses} == set(range(1, 21))
        assert len({port for _, port, _ in addresses}) == 1
        async with connected(simulator, "mill-01") as client:
            values = {}
            for name in simulator.fleet.machines:
                unit = simulator.fleet.address(name)[2]
                values[name] = decode(signals, FIRST, await read_all(client, unit))
            assert len({v["program"] for v in values.values()}) > 10
            assert all(machine.counter == 1 for machine in simulator.fleet.machines.values())
            for unit in (0, 21, 255):
                answer = await client.read_holding_registers(FIRST, count=COUNT, device_id=unit)
                assert answer.exception_code == 11


async def test_two_hundred_machines_in_one_process(settings, connected, decode) -> None:
    async with running(settings(machines=200, behaviour="shop")) as simulator:
        signals = simulator.fleet.profile.spec.signals

        async def poll(name: str) -> set[object]:
            async with connected(simulator, name) as client:
                return {decode(signals, FIRST, await read_all(client))["poll_counter"] for _ in range(5)}

        answers = await asyncio.gather(*map(poll, simulator.fleet.machines))
        assert answers == [{1, 2, 3, 4, 5}] * 200
        assert len({simulator.fleet.address(name)[1] for name in simulator.fleet.machines}) == 200


async def test_the_documents_lead_to_the_machines(tmp_path: Path, settings, decode) -> None:
    file = tmp_path / "machines.yaml"
    wanted = settings(machines=3, machines_file=str(file), site="north", edge="pi-1", poll_interval_ms=100)
    async with running(wanted) as simulator:
        found = machine_files.load([file])
        assert found.problems == []
        assert list(found.machines) == list(simulator.fleet.machines) == ["cnc-001", "cnc-002", "cnc-003"]
        for machine in found.machines.values():
            spec = machine.spec
            assert (spec.site, spec.edge, spec.poll_interval_ms) == ("north", "pi-1", 100)
            modbus = spec.connection.modbus
            client = AsyncModbusTcpClient(modbus.host, port=modbus.port, timeout=1, retries=0)
            await client.connect()
            registers = await read_all(client, modbus.unit_id)
            client.close()
            assert decode(spec.signals, FIRST, registers)["poll_counter"] == 1
