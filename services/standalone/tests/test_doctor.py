import asyncio
import contextlib
import json
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cncmon_standalone.doctor import documents, host, run
from cncmon_standalone.doctor.check import Check, Status


@asynccontextmanager
async def device(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    """Something on a TCP port, which is yielded, that answers requests as told; None: it closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while (said := answer(await reader.readexactly(12))) is not None:
                writer.write(said)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def reply(request: bytes, *pdu: int) -> bytes:
    return request[:2] + struct.pack(">HHB", 0, len(pdu) + 1, request[6]) + bytes(pdu)


def registers(request: bytes, refused: set[int]) -> bytes:
    """Answer as a device whose registers hold their own numbers, and that lacks some of them."""
    start, count = struct.unpack(">HH", request[8:12])
    if refused & {*range(start, start + count)}:
        return reply(request, 0x83, 2)
    return reply(request, 3, 2 * count, *struct.pack(f">{count}H", *range(start, start + count)))


THREE = """
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: mill}
spec:
  connection: {modbus: {host: 127.0.0.1, port: %d, timeoutMs: 200, unitId: 3}}
  signals:
    - {name: temperature, register: 10, scale: 0.1}
    - {name: spindle_speed, register: 12}
    - {name: tool_number, register: 14}
"""


async def checks_of(file: Path, text: str) -> dict[str, Check]:
    file.write_text(text)
    return {check.name: check for group in await documents.documents([file]) for check in group.checks}


async def test_a_machine_is_read_once_and_its_values_are_shown(tmp_path: Path) -> None:
    async with device(lambda request: registers(request, set())) as port:
        checks = await checks_of(tmp_path / "machine.yaml", THREE % port)
    check = checks["mill answers"]
    assert (check.status, check.detail) == (
        Status.OK,
        "3 of 3 signals: temperature = 1.0, spindle_speed = 12, tool_number = 14",
    )


async def test_each_signal_that_is_refused_says_why(tmp_path: Path) -> None:
    async with device(lambda request: registers(request, {12})) as port:
        checks = await checks_of(tmp_path / "machine.yaml", THREE % port)
    assert checks["mill answers"].detail == "2 of 3 signals: temperature = 1.0, tool_number = 14"
    check = checks["mill has spindle_speed"]
    assert check.status is Status.FAIL
    assert "illegal data address" in check.detail.lower()


async def test_nothing_but_the_checks_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "machine.yaml"
    async with device(lambda request: registers(request, {12})) as port:
        file.write_text(THREE % port)
        assert await run.run(tmp_path, [file], as_json=True) == run.FAILED
    document = json.loads(capsys.readouterr().out)
    assert "mill has spindle_speed" in {check["name"] for check in document["checks"]}


async def test_a_machine_that_refuses_all_of_its_registers_does_not_answer(tmp_path: Path) -> None:
    """What a wrong unitId or another machine's profile looks like."""
    async with device(lambda request: registers(request, {10, 12, 14})) as port:
        checks = await checks_of(tmp_path / "machine.yaml", THREE % port)
    check = checks["mill answers"]
    assert check.status is Status.FAIL
    assert "no signal can be read; temperature (register 10)" in check.detail
    assert "check its address (unitId)" in check.remedy


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n", "no Modbus"),
        (lambda _: None, "the connection was closed|it hung up"),
        (lambda _: b"", "it is silent"),
    ],
)
async def test_what_is_no_modbus_device_is_told_apart(
    tmp_path: Path, answer: Callable[[bytes], bytes | None], said: str
) -> None:
    async with device(answer) as port:
        checks = await checks_of(tmp_path / "machine.yaml", THREE % port)
    assert checks["mill answers"].status is Status.FAIL
    assert re.search(said, checks["mill answers"].detail), checks["mill answers"].detail


async def test_nobody_there(tmp_path: Path) -> None:
    async with device(lambda _: None) as port:
        pass
    checks = await checks_of(tmp_path / "machine.yaml", THREE % port)
    assert f"can't connect to 127.0.0.1:{port}" in checks["mill answers"].detail


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
    async with device(lambda request: registers(request, set())) as port:
        checks = await checks_of(file, MACHINES % port)
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
