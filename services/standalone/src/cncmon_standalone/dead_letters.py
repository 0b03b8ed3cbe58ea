"""`cncmon dlq`: what could not be stored, why, with its bytes; store it again once it can be, or give it up."""

import base64
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

from cncmon_core.frames import split_numbered
from cncmon_ingest import dlq
from cncmon_ingest.dead_letters import is_group
from cncmon_ingest.decode import WHOLE_MESSAGE
from cncmon_ingest.dlq import DEAD, Count, Replayed, Which
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import console
from cncmon_standalone.database import connected
from cncmon_standalone.errors import UnusableError

_HEX_BYTES_A_LINE = 16
_SHOWN_BYTES_MAX = 4096
_REPLAYED_SHOWN_MAX = 100
_FRAMES_SHOWN_MAX = 20


async def ls(data: Path | None, which: Which, *, dsn: str | None, counts: bool, limit: int, as_json: bool) -> None:
    """Print the dead letters, newest first, or how many there are of each reason."""
    async with connected(data, dsn) as connection:
        numbers = await dlq.counts(connection, which)
        expired = await dlq.expired(connection, which)
        found = [] if counts else await dlq.list_(connection, which, limit=limit)
    if as_json:
        # Totals have no letters to list: who lists letters gets those that there are.
        _print_json(
            [*numbers, *({**msgspec.to_builtins(one), "expired": True} for one in expired)] if counts else found
        )
        return
    out = console.for_people()
    if not numbers and not expired:
        said = "None of these." if which != DEAD else "No dead letters: everything that came could be stored."
        out.print(said)
        return
    width = max(len(one.reason) for one in (*numbers, *expired))
    for row in found:
        what = _what(row["frame"], row["frames"])
        mark = "" if row["state"] == "dead" else f"  [green]{row['state']}[/]"
        out.print(
            f"[bold]{row['id']:>6}[/]  {row['created']:%Y-%m-%d %H:%M:%S}  {escape(row['reason']):<{width}}  "
            f"{escape(row['subject'])}, {what}, {row['bytes']:,} bytes{mark}",
            soft_wrap=True,
        )
        out.print(f"        [dim]{escape(row['detail'])}[/]", soft_wrap=True)
    if found:
        out.print()
    for one in numbers:
        state = "" if one.state == "dead" else f" {one.state}"
        out.print(f"{one.letters:>8,}{state} {escape(one.reason):<{width}}  {_extent(one)}", soft_wrap=True)
    for one in expired:
        out.print(
            f"{one.letters:>8,} {one.state}, then deleted at the end of their retention: {escape(one.reason)}  "
            f"{_extent(one)}",
            soft_wrap=True,
        )
    out.print(
        "\nTimes are UTC. One of them in full: cncmon dlq show ID. Store again: cncmon dlq replay ID, or --all, or by "
        "--reason, --edge, --since; give up: cncmon dlq drop.",
        soft_wrap=True,
    )


def _what(frame: int, frames: int) -> str:
    if is_group(frame):
        return f"{frames:,} frames"
    return "whole message" if frame == WHOLE_MESSAGE else f"frame {frame}"


def _extent(one: Count) -> str:
    frames = f"{one.frames:,} frames, " if one.frames != one.letters else ""
    return f"{frames}{one.bytes:,} bytes, {one.first:%Y-%m-%d %H:%M} to {one.last:%Y-%m-%d %H:%M}"


async def show(data: Path | None, id_: int, *, dsn: str | None, as_json: bool) -> None:
    """Print one dead letter.

    Raises:
        UnusableError: there is no such one.
    """
    async with connected(data, dsn) as connection:
        found = await dlq.show(connection, id_)
    if found is None:
        raise UnusableError(f"there is no dead letter {id_}. See: cncmon dlq ls --all")
    payload: bytes = found.pop("payload")
    if as_json:
        _print_json({**found, **_payload(found["frame"], payload)})
        return
    out = console.for_people()
    for name, value in found.items():
        if name != "headers":
            out.print(f"[dim]{name:<11}[/] {escape(str(value))}", soft_wrap=True)
    for name, value in found["headers"].items():
        out.print(f"[dim]header[/]      {escape(name)}: {escape(value)}", soft_wrap=True)
    numbered = split_numbered(payload) if is_group(found["frame"]) else []
    for number, part in numbered[:_FRAMES_SHOWN_MAX]:
        out.print(f"[dim]frame {number}[/]")
        for line in _lines_of(part):
            out.print(f"  {escape(line)}", soft_wrap=True)
    if len(numbered) > _FRAMES_SHOWN_MAX:
        out.print(f"… {len(numbered) - _FRAMES_SHOWN_MAX:,} more frames; all of them: --json")
    if not numbered:
        out.print("[dim]payload[/]")
        for line in _lines_of(payload):
            out.print(f"  {escape(line)}", soft_wrap=True)


def _payload(frame: int, payload: bytes) -> dict[str, Any]:
    if not is_group(frame):
        return {"payload_base64": base64.b64encode(payload).decode()}
    return {
        "payload_frames": [
            {"frame": number, "base64": base64.b64encode(part).decode()} for number, part in split_numbered(payload)
        ]
    }


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


async def replay(data: Path | None, which: Which, *, dsn: str | None, as_json: bool) -> int:
    """Store again what can be stored now, and print what became of each; return the exit status."""
    found: list[Replayed] = []
    async with connected(data, dsn) as connection:
        ids = await dlq.chosen(connection, which)
        with console.bar("Storing again", len(ids)) as advance:
            async for one in dlq.replay(connection, ids, IngestSettings(database_dsn="unused")):
                found.append(one)
                advance()
    refused = [item for item in found if item.error]
    if as_json:
        _print_json(found)
        return 1 if refused else 0
    out = console.for_people()
    for item in found[:_REPLAYED_SHOWN_MAX]:
        if item.error and item.samples:
            out.print(f"  [red]×[/] {item.id}: {item.samples} samples stored, {escape(item.error)}", soft_wrap=True)
        elif item.error:
            out.print(f"  [red]×[/] {item.id}: {escape(item.error)}", soft_wrap=True)
        else:
            out.print(f"  [green]√[/] {item.id}: {item.samples} {'sample' if item.samples == 1 else 'samples'} stored")
    if len(found) > _REPLAYED_SHOWN_MAX:
        out.print(f"  … {len(found) - _REPLAYED_SHOWN_MAX:,} more; --json lists them all")
    stored = sum(item.samples for item in found)
    out.print(f"{len(found) - len(refused):,} of {len(found):,} replayed, {stored:,} samples stored.")
    return 1 if refused else 0


async def drop(data: Path | None, which: Which, *, dsn: str | None, confirmed: bool, as_json: bool) -> int:
    """Give dead letters up; return the exit status: 1 where one that was named is not there, or not dead any more.

    Raises:
        UnusableError: nobody confirmed it.
    """
    async with connected(data, dsn) as connection:
        number = sum(one.letters for one in await dlq.counts(connection, which))
        if number and not confirmed:
            raise UnusableError(f"this gives up {number:,} dead letters for good. Say so: --yes")
        dropped = await dlq.drop(connection, which)
    if as_json:
        _print_json({"dropped": dropped})
    else:
        console.for_people().print(f"{dropped:,} dead letters given up. They stay listed: cncmon dlq ls --all")
    return 1 if dropped < len(which.ids) else 0


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
