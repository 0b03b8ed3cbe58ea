"""The command: run all checks and print them."""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import msgspec
from rich.markup import escape

from cncmon_core import logs
from cncmon_standalone import console, state
from cncmon_standalone.doctor import documents, host
from cncmon_standalone.doctor.check import Check, Status
from cncmon_standalone.errors import NotRunningError
from cncmon_standalone.folder import default_folder
from cncmon_standalone.state import RunState

_MARKS = {Status.OK: "[green]√[/]", Status.WARN: "[yellow]‼[/]", Status.FAIL: "[red]×[/]"}
FAILED = 1


async def run(data: Path | None, files: Sequence[Path], *, as_json: bool) -> int:
    """Print what was found; return the exit status: 1 when something failed."""
    # What a driver would log is in the checks.
    logs.setup("cncmon", "error")
    try:
        running: RunState | None = state.find(data)
    except NotRunningError:
        running = None
    checks = await find(running, data, files)
    failed = any(check.status is Status.FAIL for check in checks)
    if as_json:
        document = {"ok": not failed, "running": running is not None, "checks": checks}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        _print(checks, running)
    return FAILED if failed else 0


async def find(running: RunState | None, data: Path | None, files: Sequence[Path]) -> list[Check]:
    """Return the checks in the order in which they are shown."""
    folder = Path(running.data) if running else (data or default_folder()).absolute()
    groups = [
        *await asyncio.gather(
            asyncio.to_thread(host.installation),
            asyncio.to_thread(host.machine, folder),
            asyncio.to_thread(host.port_group, running),
        )
    ]
    if files:
        groups += await documents.documents(files)
    if running:
        from cncmon_standalone.doctor.running import running as check_running

        groups += await check_running(running)
    return [check for group in groups for check in group.checks]


def _print(checks: Sequence[Check], running: RunState | None) -> None:
    out = console.for_people()
    for title, group in groupby(checks, key=lambda check: check.group):
        out.print(f"\n[bold]{title}[/]")
        for check in group:
            detail = f"  [dim]{escape(check.detail)}[/]" if check.detail else ""
            out.print(f"  {_MARKS[check.status]} {escape(check.name)}{detail}", soft_wrap=True)
            if check.remedy and check.status is not Status.OK:
                out.print(f"      → {escape(check.remedy)}", soft_wrap=True)
    if running is None:
        out.print("\n[dim]cncmon does not run; NATS, database and services are checked once it does.[/]")
    failed = sum(check.status is Status.FAIL for check in checks)
    warned = sum(check.status is Status.WARN for check in checks)
    out.print()
    if failed:
        out.print(f"[red]× {failed} of {len(checks)} checks failed[/]" + (f", {warned} warned" if warned else ""))
    else:
        out.print(f"[green]√ all {len(checks)} checks passed[/]" + (f", {warned} with a warning" if warned else ""))
