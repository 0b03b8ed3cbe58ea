"""`cncmon apply` and `cncmon delete machine`: change what the edges read, say what changed, and wait for their word."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from nats.aio.client import Client
from rich.console import Console
from rich.markup import escape

from cncmon_core import machine_files
from cncmon_core.edge_documents import EdgeDocuments
from cncmon_core.machine import Machine
from cncmon_standalone import console, state
from cncmon_standalone.configure import apply, documents
from cncmon_standalone.configure.change import EdgeChange
from cncmon_standalone.configure.rollout import Heard, Outcome
from cncmon_standalone.errors import UnusableError

FAILED = 1

_STYLES = {"created": "green", "configured": "yellow", "removed": "red", "moved": "red", "unchanged": "dim"}

_SAID = {
    "superseded": "runs a later revision already",
    "fixed": "reads fixed files of its own (CNCMON_AGENT_MACHINES), and follows no configuration",
}


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line. wait_s: how long to wait for the edges, in seconds; 0: not at all."""

    data: Path | None
    dry_run: bool
    as_json: bool
    wait_s: float


class _Edge(msgspec.Struct):
    """One edge in the JSON form. revision: of the document as it is now; state: an `Outcome`'s, null if not waited."""

    site: str
    edge: str
    revision: int
    machines: list[dict[str, object]]
    state: str | None = None
    errors: list[object] = []


async def apply_files(files: Sequence[Path], options: Options, *, prune: bool) -> int:
    """Apply the Machine documents of files and folders, all or none; return the exit status.

    Raises:
        StandaloneError: nothing was changed; says why.
    """
    machines = _usable(files)
    return await _run(options, lambda client: apply.apply(client, machines, prune=prune, dry_run=options.dry_run))


async def delete(names: Sequence[str], options: Options) -> int:
    """Take machines from their edges; return the exit status.

    Raises:
        StandaloneError: nothing was changed; says why.
    """
    return await _run(options, lambda client: apply.delete(client, names, dry_run=options.dry_run))


def _usable(files: Sequence[Path]) -> dict[str, Machine]:
    found = machine_files.load(files)
    if found.problems:
        problems = "\n".join(f"  {problem}" for problem in found.problems)
        raise UnusableError(f"nothing was changed:\n{problems}")
    if not found.machines:
        raise UnusableError(f"no Machine in {', '.join(map(str, files))}")
    return found.machines


async def _run(options: Options, work: Callable[[Client], Awaitable[list[EdgeChange]]]) -> int:
    running = state.find(options.data)
    out = console.for_people(to_stderr=options.as_json)
    async with documents.connected(running.nats_url) as client:
        heard = Heard(client)
        edges = await EdgeDocuments(client).edges()
        # Of edges that get their first document now nothing is heard before they have one.
        await heard.listen(edges)
        changes = await work(client)
        new = [(change.site, change.edge) for change in changes if (change.site, change.edge) not in edges]
        await heard.listen(new)
        for change in changes:
            _print_change(out, change, dry_run=options.dry_run)
        written = [change for change in changes if change.changes and not options.dry_run]
        began_s = time.monotonic()
        outcomes = await heard.wait([change.wanted for change in written], options.wait_s) if options.wait_s else []
        for change, outcome in zip(written, outcomes, strict=False):
            _print_outcome(out, change, outcome, time.monotonic() - began_s)
    if options.as_json:
        _print_json(changes, dict(zip([id(change) for change in written], outcomes, strict=False)))
    return FAILED if any(outcome.state == "refused" for outcome in outcomes) else 0


def _print_change(out: Console, change: EdgeChange, *, dry_run: bool) -> None:
    for machine in change.machines:
        verb = f"[{_STYLES[machine.verb]}]{machine.verb}[/]"
        note = " (dry run)" if dry_run and machine.changes else ""
        out.print(f"  {change.site}/{change.edge} {escape(machine.machine)} {verb}{note}", soft_wrap=True)
        for field in machine.fields:
            out.print(f"      [dim]{escape(field)}[/]", soft_wrap=True)


def _print_outcome(out: Console, change: EdgeChange, outcome: Outcome, seconds: float) -> None:
    place, revision = f"{change.site}/{change.edge}", change.wanted.revision
    match outcome.state:
        case "applied":
            out.print(f"  [green]√[/] {place} runs revision {revision} [dim]{seconds:.1f} s[/]")
        case "refused":
            out.print(f"  [red]×[/] {place} refuses revision {revision}, what it ran runs on:")
            for error in outcome.errors:
                out.print(f"      {escape(str(error))}", soft_wrap=True)
        case "not heard":
            said = f"has not said within {seconds:.0f} s that it runs revision {revision}. It takes it when it is there"
            out.print(f"  [yellow]‼[/] {place} {said}", soft_wrap=True)
        case _:
            out.print(f"  [yellow]‼[/] {place} {_SAID[outcome.state]}", soft_wrap=True)


def _print_json(changes: Sequence[EdgeChange], outcomes: dict[int, Outcome]) -> None:
    edges = []
    for change in changes:
        outcome = outcomes.get(id(change))
        # Where nothing changed, no new document was written.
        revision = change.wanted.revision if change.changes else change.wanted.revision - 1
        edges.append(
            _Edge(
                site=change.site,
                edge=change.edge,
                revision=revision,
                machines=[msgspec.to_builtins(machine) for machine in change.machines],
                state=outcome.state if outcome else None,
                errors=[msgspec.to_builtins(error) for error in outcome.errors] if outcome else [],
            )
        )
    print(msgspec.json.format(msgspec.json.encode({"edges": edges})).decode())
