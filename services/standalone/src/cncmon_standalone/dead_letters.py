"""`cncmon dlq`: what could not be stored, why, with its bytes; and store it again once it can be."""

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from rich.markup import escape

from cncmon_ingest import dlq
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import console, state
from cncmon_standalone.embedded.database import ERRORS as DATABASE_ERRORS
from cncmon_standalone.errors import StandaloneError, UnusableError

_HEX_BYTES_A_LINE = 16
_SHOWN_BYTES_MAX = 4096


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await asyncpg.connect(dsn, timeout=5, command_timeout=60)
    except DATABASE_ERRORS as error:
        raise StandaloneError(f"the database does not answer: {error}. See: cncmon doctor") from error
    try:
        yield connection
    finally:
        await connection.close(timeout=2)


async def ls(data: Path | None, *, every: bool, limit: int, as_json: bool) -> None:
    """Print the dead letters, newest first."""
    async with _connected(state.find(data).database_dsn) as connection:
        found = await dlq.list_(connection, state=None if every else "dead", limit=limit)
    if as_json:
        _print_json(found)
        return
    out = console.for_people()
    if not found:
        out.print("No dead letters: everything that came could be stored.")
        return
    width = max(len(row["reason"]) for row in found)
    for row in found:
        what = "whole message" if row["frame"] == -1 else f"frame {row['frame']}"
        mark = "" if row["state"] == "dead" else f"  [green]{row['state']}[/]"
        out.print(
            f"[bold]{row['id']:>6}[/]  {row['created']:%Y-%m-%d %H:%M:%S}  {escape(row['reason']):<{width}}  "
            f"{escape(row['subject'])}, {what}, {row['bytes']:,} bytes{mark}",
            soft_wrap=True,
        )
        out.print(f"        [dim]{escape(row['detail'])}[/]", soft_wrap=True)
    out.print(
        "\nTimes are UTC. One of them in full: cncmon dlq show ID. Store again: cncmon dlq replay ID, or --all.",
        soft_wrap=True,
    )


async def show(data: Path | None, id_: int, *, as_json: bool) -> None:
    """Print one dead letter.

    Raises:
        UnusableError: there is no such one.
    """
    async with _connected(state.find(data).database_dsn) as connection:
        found = await dlq.show(connection, id_)
    if found is None:
        raise UnusableError(f"there is no dead letter {id_}. See: cncmon dlq ls --all")
    payload: bytes = found.pop("payload")
    if as_json:
        _print_json({**found, "payload_base64": base64.b64encode(payload).decode()})
        return
    out = console.for_people()
    for name, value in found.items():
        if name != "headers":
            out.print(f"[dim]{name:<11}[/] {escape(str(value))}", soft_wrap=True)
    for name, value in found["headers"].items():
        out.print(f"[dim]header[/]      {escape(name)}: {escape(value)}", soft_wrap=True)
    out.print("[dim]payload[/]")
    for line in _lines_of(payload):
        out.print(f"  {escape(line)}", soft_wrap=True)


def _lines_of(payload: bytes) -> list[str]:
    """Return bytes for people: as text where they are printable text, else in hexadecimal."""
    shown = payload[:_SHOWN_BYTES_MAX]
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.replace("\n", "").isprintable():
        lines = text.splitlines()
    else:
        lines = [
            f"{at:08x}  {part.hex(' '):<{3 * _HEX_BYTES_A_LINE}} {_printable(part)}"
            for at in range(0, len(shown), _HEX_BYTES_A_LINE)
            for part in [shown[at : at + _HEX_BYTES_A_LINE]]
        ]
    more = len(payload) - len(shown)
    return [*lines, f"… {more} more bytes; all of them: --json"] if more else lines or ["(no bytes)"]


def _printable(part: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)


async def replay(data: Path | None, ids: Sequence[int], *, every: bool, as_json: bool) -> int:
    """Store again what can be stored now, and print what became of each; return the exit status.

    Raises:
        UnusableError: neither ids nor --all, or both.
    """
    if bool(ids) == every:
        raise UnusableError("say which: cncmon dlq replay ID …, or cncmon dlq replay --all")
    running = state.find(data)
    settings = IngestSettings(database_dsn=running.database_dsn)
    async with _connected(running.database_dsn) as connection:
        found = await dlq.replay(connection, None if every else ids, settings)
    refused = [item for item in found if item.error]
    if as_json:
        _print_json(found)
        return 1 if refused else 0
    out = console.for_people()
    for item in found:
        if item.error:
            out.print(f"  [red]×[/] {item.id}: {escape(item.error)}", soft_wrap=True)
        else:
            out.print(f"  [green]√[/] {item.id}: {item.samples} {'sample' if item.samples == 1 else 'samples'} stored")
    stored = sum(item.samples for item in found)
    out.print(f"{len(found) - len(refused)} of {len(found)} replayed, {stored} samples stored.")
    return 1 if refused else 0


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
