"""`cncmon status`: what runs, for people as tables and for programs as one JSON object."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from cncmon_standalone import backlog, console, live, state
from cncmon_standalone.duration import show as show_duration
from cncmon_standalone.state import RunState

_STYLES = {"running": "green", "done": "dim", "restarting": "red", "starting": "yellow", "waiting": "yellow"}


async def run(data: Path | None, *, as_json: bool) -> None:
    """Print the state of a running system.

    Raises:
        NotRunningError: nothing runs.
    """
    running = state.find(data)
    api_port = int(running.api_url.rsplit(":", 1)[1])
    waiting, machines = await asyncio.gather(backlog.of(running.nats_url), live.machines_of(api_port))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(_document(running, waiting, machines))).decode())
    else:
        _print(running, waiting, machines)


def _document(running: RunState, waiting: int | None, machines: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return the JSON form. backlog is null while NATS doesn't answer; problems says what of this could not be had."""
    problems = []
    if waiting is None:
        problems.append("NATS does not answer: the backlog is unknown")
    if machines is None:
        problems.append("the API does not answer: the machines are unknown")
    return {
        "api_url": running.api_url,
        "nats_url": running.nats_url,
        "database_dsn": running.database_dsn,
        "simulator_url": running.simulator_url,
        "command": running.command,
        "pid": running.pid,
        "data": running.data,
        "processes": [
            {
                "name": process.name,
                "pid": process.pid,
                "state": process.state,
                "restarts": process.restarts,
                "log": process.log,
                "monitor_url": f"http://127.0.0.1:{process.monitor_port}" if process.monitor_port else None,
            }
            for process in running.processes
        ],
        "backlog": waiting,
        "machines": [{key: machine[key] for key in ("id", "state", "last_sample")} for machine in machines or []],
        "problems": problems,
    }


def _print(running: RunState, waiting: int | None, machines: list[dict[str, Any]] | None) -> None:
    out = console.for_people()
    out.print(
        f"[bold]cncmon {running.command}[/] for {show_duration(time.time() - running.started)}, pid {running.pid}"
    )
    rows = [
        ("page", running.api_url + "/"),
        ("NATS", running.nats_url),
        ("database", _without_password(running.database_dsn) or "not made yet"),
        *([("simulator", running.simulator_url)] if running.simulator_url else []),
        ("data", running.data),
        ("logs", str(running.folder.logs)),
        ("backlog", "NATS does not answer" if waiting is None else f"{waiting:,} messages wait to be stored"),
    ]
    for name, value in rows:
        out.print(f"  {name:<9} {escape(value)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("part", "state", "for"):
        table.add_column(title)
    for title in ("restarts", "pid"):
        table.add_column(title, justify="right")
    for process in running.processes:
        style = _STYLES.get(process.state, "")
        table.add_row(
            process.name,
            f"[{style}]{process.state}[/]" if style else process.state,
            show_duration(time.time() - process.since),
            str(process.restarts),
            str(process.pid or ""),
        )
    out.print()
    out.print(table)
    out.print()
    _print_machines(out, machines)


def _print_machines(out: Any, machines: list[dict[str, Any]] | None) -> None:
    if not machines:
        out.print("  The API does not answer." if machines is None else "  No machine has sent a sample yet.")
        return
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("machine", "state", "site/edge", "last sample"):
        table.add_column(title)
    for machine in machines:
        last = machine.get("last_sample") or {}
        table.add_row(
            machine["id"],
            machine["state"] or "unknown",
            f"{machine['site']}/{machine['edge']}",
            last.get("timestamp", ""),
        )
    out.print(table)


def _without_password(dsn: str) -> str:
    head, _, rest = dsn.partition("://")
    user, _, place = rest.rpartition("@")
    return f"{head}://{user.split(':')[0]}@{place}" if place and user else dsn
