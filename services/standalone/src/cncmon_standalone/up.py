"""`cncmon up`: your own machines, in the foreground until Ctrl-C."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from cncmon_core import machine_files
from cncmon_standalone import console, folder, live, session, state, system
from cncmon_standalone.configure import at_start
from cncmon_standalone.errors import UnusableError
from cncmon_standalone.supervise.supervisor import Supervisor

LINE_S_NO_TERMINAL = 600.0
"""Where the output goes to a log, a sign of life is enough; what happens is told when it happens."""


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    files: Sequence[Path]
    data: Path | None
    api_port: int
    nats_port: int
    postgres_port: int
    workers: int


async def run(options: Options) -> None:
    """Run until the user stops it.

    Raises:
        StandaloneError: what is wrong and what to do.
    """
    progress = console.Progress(console.for_people())
    files = [file.absolute() for file in options.files]
    found = usable(files)
    for problem in found.problems:
        progress.warn(str(problem))
    if found.problems:
        progress.line(f"  [dim]left out; {count(len(found.machines), 'machine')} can be read all the same[/]")
    edges = Counter((machine.spec.site, machine.spec.edge) for machine in found.machines.values())
    data = folder.DataFolder((options.data or folder.default_folder()).absolute())
    data.make()
    plan = system.Plan(
        folder=data,
        edges=[system.Edge(*edge) for edge in sorted(edges)],
        workers=options.workers,
        api_port=options.api_port,
        nats_port=options.nats_port,
        postgres_port=options.postgres_port,
    )
    progress.line(
        f"[bold]CNC Monitor[/]: {count(len(found.machines), 'machine')}, {count(len(edges), 'edge')}, "
        f"data in {escape(str(data.root))}"
    )

    async def body(supervisor: Supervisor) -> None:
        async with progress.never_silent("starting"):
            await supervisor.wait_ready(["bootstrap"])
            await at_start.configure(plan.nats_url, found.machines, progress)
            await supervisor.wait_ready()
        progress.line(f"\n  [bold]{plan.api_url}[/]   Ctrl-C stops it, data stay in {escape(str(data.root))}\n")
        await live.show(supervisor, progress, live.Line(plan, every_s=LINE_S_NO_TERMINAL))
        progress.end_status()
        progress.line("Stopping")

    with data.locked(), state.announced(data):
        await session.run(plan, "up", progress, body)
    progress.line("Stopped.")


def usable(files: Sequence[Path]) -> machine_files.Machines:
    """Return the machines of the files, with the problems of those that can't be used.

    Raises:
        UnusableError: not one can be used; says why.
    """
    found = machine_files.load(files)
    if not found.machines:
        problems = "\n".join(f"  {problem}" for problem in found.problems)
        said = f"no usable Machine in {', '.join(map(str, files))}"
        raise UnusableError(f"{said}:\n{problems}" if problems else said)
    return found


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 machine, 5 machines."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
