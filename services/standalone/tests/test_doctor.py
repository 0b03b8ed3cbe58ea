import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cncmon_core.machine import ModbusConnection, Signal
from cncmon_standalone.doctor import documents, host, modbus, run
from cncmon_standalone.doctor.check import Check, Status

SIGNAL = Signal(name="temperature", register=100)


@asynccontextmanager
async def device(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[ModbusConnection]:
    """Something on a TCP port that answers a request as told; None: it closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = answer(await reader.readexactly(12))
        if said:
            writer.write(said)
            await writer.drain()
        if said != b"":
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield ModbusConnection(host="127.0.0.1", port=server.sockets[0].getsockname()[1], timeout_ms=200, unit_id=3)
    finally:
        server.close()


def reply(request: bytes, *pdu: int) -> bytes:
    return request[:2] + struct.pack(">HHB", 0, len(pdu) + 1, request[6]) + bytes(pdu)


async def test_a_device_that_answers() -> None:
    requests = []

    def answer(request: bytes) -> bytes:
        requests.append(request)
        return reply(request, 3, 2, 0, 42)

    async with device(answer) as connection:
        assert await modbus.ask(connection, SIGNAL) is None
    assert requests[0][6:] == struct.pack(">BBHH", 3, 3, 100, 1)


async def test_an_exception_is_named() -> None:
    async with device(lambda request: reply(request, 0x83, 2)) as connection:
        assert await modbus.ask(connection, SIGNAL) == "exception 2 (illegal data address) for register 100"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n", "answers, but not in Modbus"),
        (lambda _: None, "closes the connection instead of answering"),
        (lambda _: b"", "takes the connection, and does not answer within 0.2 s"),
    ],
)
async def test_what_is_no_modbus_device_is_told_apart(answer: Callable[[bytes], bytes | None], said: str) -> None:
    async with device(answer) as connection:
        with pytest.raises(modbus.NoAnswerError, match=said):
            await modbus.ask(connection, SIGNAL)


async def test_nobody_there() -> None:
    async with device(lambda _: None) as connection:
        pass
    with pytest.raises(modbus.NoAnswerError, match="can't be reached"):
        await modbus.ask(connection, SIGNAL)


MACHINES = """
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: good}
spec:
  connection: {modbus: {host: 127.0.0.1, port: %d, timeoutMs: 200}}
  signals: [{name: temperature, register: 0}]
---
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: bad}
spec:
  connection: {modbus: {host: 127.0.0.1, prot: 502}}
  signals: [{name: temperature, register: 0}]
"""


async def test_a_bad_document_is_told_with_its_line_and_the_good_machine_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    async with device(lambda request: reply(request, 3, 2, 0, 1)) as connection:
        file.write_text(MACHINES % connection.port)
        groups = await documents.documents([file])
    checks = {check.name: check for group in groups for check in group.checks}
    assert checks["every document is valid"].status is Status.FAIL
    assert f"{file}:13: Machine bad" in checks["every document is valid"].detail
    assert "prot" in checks["every document is valid"].detail
    assert checks["good answers"].status is Status.OK


def test_this_machine_can_run_it(reachable: Path) -> None:
    checks = [*host.installation().checks, *host.machine(reachable / "data").checks]
    assert [check for check in checks if check.status is Status.FAIL] == []
    names = {check.name for check in checks}
    assert {"nats-server runs", "PostgreSQL runs", "the disk has room", "PostgreSQL has a user to run as"} <= names


def test_a_full_disk_fails(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FREE_BYTES_FAIL", 1 << 60)
    (check,) = [check for check in host.machine(reachable).checks if check.name == "the disk has room"]
    assert check.status is Status.FAIL
    assert check.remedy


async def test_every_warning_and_failure_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(MACHINES % 1)
    checks = await run.find(None, tmp_path, [file])
    wrong = [check for check in checks if check.status is not Status.OK]
    assert {check.name for check in wrong} >= {"every document is valid", "good answers"}
    assert all(check.remedy for check in wrong)
    run._print(checks, None)
    shown = capsys.readouterr().out
    assert "  × good answers" in shown
    assert "      → check address, cable, firewall" in shown
    assert "cncmon does not run" in shown


def test_the_mark_of_a_check_is_more_than_a_colour() -> None:
    marks = {run._MARKS[status].split("]")[1].split("[")[0] for status in Status}
    assert len(marks) == len(Status)
    assert Check("g", "n", Status.OK).remedy == ""
