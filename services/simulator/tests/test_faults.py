import asyncio
import time
from pathlib import Path

import pytest
from pymodbus.exceptions import ModbusException

from cncmon_simulator import poll_log, running
from cncmon_simulator.errors import FaultError, UnknownMachineError
from cncmon_simulator.faults import Fault, parse

pytestmark = pytest.mark.virtual_time

FIRST, COUNT = 100, 39
NAME = "cnc-001"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "polls.jsonl"


async def poll(client):
    return await client.read_holding_registers(FIRST, count=COUNT)


def faults_in(log: Path) -> list[str | None]:
    return [record.fault for record in poll_log.read(log)]


async def test_late(settings, connected, log: Path) -> None:
    async with running(settings(poll_log=str(log))) as simulator, connected(simulator, NAME) as client:
        await simulator.fleet.set_fault(NAME, Fault(fault="late", delay_ms=300))
        start = time.monotonic()
        assert not (await poll(client)).isError()
        assert 0.29 < time.monotonic() - start < 0.6
        await simulator.fleet.clear_faults(NAME, "late")
        start = time.monotonic()
        assert not (await poll(client)).isError()
        assert time.monotonic() - start < 0.2
    assert faults_in(log) == ["late", None]


async def test_a_late_answer_keeps_its_own_transaction_id(settings, connected) -> None:
    async with running(settings()) as simulator:
        host, port, _ = simulator.fleet.address(NAME)
        reader, writer = await asyncio.open_connection(host, port)
        await simulator.fleet.set_fault(NAME, Fault(fault="late", delay_ms=200))
        writer.write(bytes.fromhex("0007 0000 0006 01 03 0064 0002"))
        await asyncio.sleep(0.05)
        await simulator.fleet.clear_faults(NAME)
        writer.write(bytes.fromhex("0008 0000 0006 01 03 0064 0002"))
        answers = [await reader.readexactly(13) for _ in range(2)]
        assert [answer[:2] for answer in answers] == [b"\0\x08", b"\0\x07"]
        assert [answer[-1] for answer in answers] == [2, 1]
        writer.close()


async def test_drop(settings, connected, log: Path) -> None:
    async with running(settings(poll_log=str(log))) as simulator:
        await simulator.fleet.set_fault(NAME, Fault(fault="drop"))
        host, port, _ = simulator.fleet.address(NAME)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(bytes.fromhex("0001 0000 0006 01 03 0064 0027"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 2)
        writer.close()
        await simulator.fleet.clear_faults(NAME)
        async with connected(simulator, NAME) as client:
            assert not (await poll(client)).isError()
    assert faults_in(log) == ["drop", None]


async def test_exception(settings, connected, log: Path) -> None:
    async with running(settings(poll_log=str(log))) as simulator, connected(simulator, NAME) as client:
        await simulator.fleet.set_fault(NAME, Fault(fault="exception", code=6))
        assert (await poll(client)).exception_code == 6
        assert (await client.read_holding_registers(120, count=1)).exception_code == 6
        await simulator.fleet.clear_faults(NAME)
        assert not (await poll(client)).isError()
    assert faults_in(log) == ["exception", None]


async def test_exception_on_some_registers(settings, connected) -> None:
    async with running(settings()) as simulator, connected(simulator, NAME) as client:
        await simulator.fleet.set_fault(NAME, parse({"fault": "exception", "code": 2, "registers": [118, 121]}))
        assert (await poll(client)).exception_code == 2
        for address, count, is_error in ((100, 18, False), (117, 2, True), (121, 1, True), (122, 17, False)):
            assert (await client.read_holding_registers(address, count=count)).isError() == is_error


async def test_wrong_transaction_id(settings, connected, log: Path) -> None:
    async with running(settings(poll_log=str(log))) as simulator, connected(simulator, NAME) as client:
        await simulator.fleet.set_fault(NAME, Fault(fault="wrong_transaction_id"))
        with pytest.raises(ModbusException):
            await poll(client)
        host, port, _ = simulator.fleet.address(NAME)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(bytes.fromhex("ffff 0000 0006 01 03 0064 0002"))
        assert (await reader.readexactly(13))[:2] == b"\0\0"
        writer.close()
    assert faults_in(log) == ["wrong_transaction_id"] * 2


async def test_frozen(settings, connected, decode, clock, log: Path) -> None:
    async with running(settings(poll_log=str(log)), clock) as simulator, connected(simulator, NAME) as client:
        signals = simulator.fleet.profile.spec.signals
        seen = []
        await simulator.fleet.set_fault(NAME, Fault(fault="frozen"))
        for turn in range(4):
            if turn == 3:
                await simulator.fleet.clear_faults(NAME)
            clock.now_s += 1.3
            seen.append(decode(signals, FIRST, (await poll(client)).registers))
    records = list(poll_log.read(log))
    assert [r.values for r in records] == seen
    assert [r.fault for r in records] == ["frozen"] * 3 + [None]
    assert [v.pop("poll_counter") for v in seen] == [1, 2, 3, 4]
    assert seen[0] == seen[1] == seen[2] != seen[3]


async def test_out_of_range(settings, connected, decode, log: Path) -> None:
    async with running(settings(poll_log=str(log))) as simulator, connected(simulator, NAME) as client:
        signals = simulator.fleet.profile.spec.signals
        await simulator.fleet.set_fault(NAME, Fault(fault="out_of_range"))
        seen = [decode(signals, FIRST, (await poll(client)).registers) for _ in range(4)]
    records = list(poll_log.read(log))
    assert [r.values for r in records] == seen
    assert {r.fault for r in records} == {"out_of_range"}
    assert [v["poll_counter"] for v in seen] == [1, 2, 3, 4]
    assert all(v["machine_state"] is None for v in seen)
    assert {v["total_power_kw"] for v in seen} == {None, 3.0e38}
    assert {v["x_pos_mm"] for v in seen} == {2147483.647, -2147483.648}


async def test_off_and_on_again(settings, connected) -> None:
    async with running(settings(machines=2)) as simulator:
        fleet = simulator.fleet
        host, port, _ = fleet.address(NAME)
        reader, writer = await asyncio.open_connection(host, port)
        await fleet.set_fault(NAME, Fault(fault="off"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 2)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)
        async with connected(simulator, "cnc-002") as client:
            assert not (await poll(client)).isError()
        assert fleet.is_listening
        await fleet.clear_faults(NAME)
        assert fleet.address(NAME) == (host, port, 1)
        async with connected(simulator, NAME) as client:
            assert not (await poll(client)).isError()


async def test_off_behind_a_gateway_is_the_gateways_answer(settings, connected) -> None:
    async with (
        running(settings(machines=2, addressing="unit_ids")) as simulator,
        connected(simulator, NAME) as client,
    ):
        await simulator.fleet.set_fault(NAME, Fault(fault="off"))
        assert (await client.read_holding_registers(FIRST, count=COUNT, device_id=1)).exception_code == 11
        assert not (await client.read_holding_registers(FIRST, count=COUNT, device_id=2)).isError()
        assert simulator.fleet.machines[NAME].counter == 0


async def test_faults_end_by_themselves(settings, connected) -> None:
    async with running(settings()) as simulator:
        fleet = simulator.fleet
        await fleet.set_fault(NAME, Fault(fault="off", for_s=0.3))
        host, port, _ = fleet.address(NAME)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)
        await asyncio.sleep(0.7)
        async with connected(simulator, NAME) as client:
            assert not (await poll(client)).isError()
            await fleet.set_fault(NAME, Fault(fault="exception", for_s=0.1))
            assert (await poll(client)).isError()
            await asyncio.sleep(0.15)
            assert not (await poll(client)).isError()


async def test_probability_is_by_poll_and_by_seed(settings, connected, log: Path) -> None:
    async def codes() -> list[bool]:
        async with running(settings(poll_log=str(log))) as simulator, connected(simulator, NAME) as client:
            await simulator.fleet.set_fault(NAME, Fault(fault="exception", probability=0.3))
            return [(await poll(client)).isError() for _ in range(100)]

    first = await codes()
    assert [fault is not None for fault in faults_in(log)] == first
    assert first == await codes()
    assert 15 < sum(first) < 45


async def test_faults_add_up_and_star_is_all(settings, connected, log: Path) -> None:
    async with running(settings(machines=3, poll_log=str(log))) as simulator:
        await simulator.fleet.set_fault("*", Fault(fault="frozen"))
        await simulator.fleet.set_fault("*", Fault(fault="exception"))
        for name in simulator.fleet.machines:
            async with connected(simulator, name) as client:
                assert (await poll(client)).isError()
        await simulator.fleet.clear_faults("*", "exception")
        async with connected(simulator, NAME) as client:
            assert not (await poll(client)).isError()
    assert faults_in(log) == ["frozen+exception"] * 3 + ["frozen"]


async def test_unknown_names(settings) -> None:
    async with running(settings(machines=3)) as simulator:
        with pytest.raises(UnknownMachineError, match="no machine 'x'; there are cnc-001, cnc-002, cnc-003"):
            await simulator.fleet.set_fault("x", Fault(fault="drop"))
        with pytest.raises(FaultError, match="no fault 'x'; a fault is one of late, drop"):
            await simulator.fleet.clear_faults(NAME, "x")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "missing required field `fault`"),
        ({"fault": "explode"}, "late, drop, exception, wrong_transaction_id, frozen, out_of_range, off"),
        ({"fault": "late", "delay_ms": 0}, "delay_ms 1 to 60000"),
        ({"fault": "late", "delay": 5}, "unknown field `delay`"),
        ({"fault": "late", "code": 4}, "code is not for late, only for exception"),
        ({"fault": "exception", "code": 7}, "code 7 is no Modbus exception; known are 1 (illegal function)"),
        ({"fault": "exception", "registers": [5, 4]}, "first no greater than last"),
        ({"fault": "exception", "registers": [1]}, "registers [first, last]"),
        ({"fault": "drop", "probability": 0}, "probability above 0 to 1"),
        ({"fault": "off", "probability": 0.5}, "probability is not for off"),
        ({"fault": "drop", "for_s": -1}, "for_s up to 86400"),
    ],
    ids=str,
)
def test_a_fault_that_can_not_be_set_says_what_is_allowed(asked: dict, said: str) -> None:
    with pytest.raises(FaultError) as error:
        parse(asked)
    assert said in str(error.value)
