"""The `cncmon` command line. What a command needs is imported when it runs, so that `--help` answers at once."""

import asyncio
import sys
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cncmon_standalone.duration import parse as parse_duration
from cncmon_standalone.errors import StandaloneError, UnusableError

app = typer.Typer(
    name="cncmon",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="CNC Monitor on one machine: the whole system, with its own NATS and PostgreSQL, one process per service.",
    epilog="First look: cncmon demo. Your own machines: cncmon up -f machines.yaml.",
)
dlq = typer.Typer(no_args_is_help=True, help="Dead letters: samples and messages that could not be stored.")
db = typer.Typer(no_args_is_help=True, help="The database: what it takes, whether it is fit, its tables' version.")
machines = typer.Typer(no_args_is_help=True, help="Take away what edges have.")
owned = typer.Typer(no_args_is_help=True, help="Whose machines are: a machine's samples are taken from its owner only.")
app.add_typer(machines, name="delete", short_help="Take machines from their edges.")
app.add_typer(owned, name="machines", short_help="Whose machines are: ls, hand-over.")
app.add_typer(dlq, name="dlq", short_help="What could not be stored: ls, show, replay, drop.")
app.add_typer(db, name="db", short_help="The database: size, check, adopt, upgrade, recompute.")


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _seconds_or_none(text: str) -> float:
    # A default comes through here, too.
    return 0.0 if str(text).strip() in ("0", "0s") else _seconds(str(text))


Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data folder.", show_default="the one that runs, or the user's own"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]
ApiPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of the page and the API.")]
NatsPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of NATS.")]
PostgresPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of PostgreSQL.")]
Workers = Annotated[int, typer.Option(min=1, max=16, help="Ingest workers, side by side.")]
Killable = Literal["agent", "ingest", "nats", "postgres"]


@app.command(short_help="Simulated machines, live in the browser.")
def demo(
    machines: Annotated[int, typer.Option(min=1, max=500, help="Simulated machines.")] = 5,
    hz: Annotated[float, typer.Option(min=0.01, max=100, help="Samples a second of each machine.")] = 2.0,
    behaviour: Annotated[
        Literal["shop", "reference"],
        typer.Option(help="shop: jobs, tool wear, alarms, breaks. reference: fixed sine waves and states."),
    ] = "shop",
    seed: Annotated[int, typer.Option(help="Same seed, same story.")] = 1,
    duration: Annotated[
        float | None,
        typer.Option(
            "--for",
            parser=_seconds,
            metavar="DURATION",
            help="Stop after 30s, 5m, 1h30m … and prove that nothing was lost or doubled.",
            show_default="until Ctrl-C",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --for: print the figures as one JSON object, progress on stderr.")
    ] = False,
    kill: Annotated[
        Killable | None,
        typer.Option(
            help="With --for: kill -9 this part half-way. With 'agent', only what the stream had acknowledged counts "
            "as accepted: the agent keeps its samples in memory.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data folder, kept.", show_default="a fresh one, removed at the end"),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page where there is a display.")
    ] = True,
    workers: Workers = 1,
    api_port: ApiPort = 8480,
) -> None:
    """Simulated machines, live in the browser: real Modbus, NATS and PostgreSQL, nothing mocked.

    Exit status with --for: 0 when every accepted sample is stored exactly once as the machine gave it, or is a listed
    dead letter or gap; 1 when samples were lost, doubled or changed.
    """
    from cncmon_standalone.demo.options import Options

    options = Options(
        machines=machines,
        hz=hz,
        behaviour=behaviour,
        seed=seed,
        seconds=duration,
        as_json=as_json,
        kill=kill,
        data=data,
        browser=browser,
        workers=workers,
        api_port=api_port,
    )
    options.check()
    from cncmon_standalone.demo.run import run

    raise typer.Exit(_run(run(options)))


@app.command(short_help="Your own machines, until Ctrl-C.")
def up(
    files: Annotated[
        list[Path],
        typer.Option(
            "-f", "--file", metavar="FILE_OR_DIR", exists=True, help="Machine documents (YAML), or a folder of them."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data folder.", show_default="the user's own")
    ] = None,
    workers: Workers = 1,
    api_port: ApiPort = 8480,
    nats_port: NatsPort = 8481,
    postgres_port: PostgresPort = 8482,
) -> None:
    """Your own machines: reads them, stores, shows the page, until Ctrl-C."""
    from cncmon_standalone import up as command

    _run(command.run(command.Options(files, data, api_port, nats_port, postgres_port, workers)))


DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        parser=_seconds_or_none,
        metavar="DURATION",
        help="How long to wait for the edges to say that they run it; 0: not at all.",
        show_default="10s",
    ),
]


@app.command("apply", short_help="Add or change machines while it runs.")
def apply_command(
    files: Annotated[
        list[Path],
        typer.Option(
            "-f", "--file", metavar="FILE_OR_DIR", exists=True, help="Machine documents (YAML), or a folder of them."
        ),
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the machines of these edges that the files don't name.")
    ] = False,
    dry_run: DryRun = False,
    wait: Wait = 10.0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Add machines or change them while everything runs: only what changed is read anew, and nothing is lost on others.

    All documents are applied, or none. Exit status 1 when an edge refuses its new configuration (the one before runs
    on), 2 when the files can't be used.
    """
    from cncmon_standalone.configure import commands

    options = commands.Options(data, dry_run=dry_run, as_json=as_json, wait_s=wait)
    raise typer.Exit(_run(commands.apply_files(files, options, prune=prune)))


@machines.command("machine")
def delete_machine(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    dry_run: DryRun = False,
    wait: Wait = 10.0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stop reading machines. What they sent stays stored."""
    from cncmon_standalone.configure import commands

    options = commands.Options(data, dry_run=dry_run, as_json=as_json, wait_s=wait)
    raise typer.Exit(_run(commands.delete(names, options)))


@app.command(short_help="How fast this machine stores samples.")
def bench(
    samples: Annotated[int, typer.Option(min=100_000, max=20_000_000, help="Samples in the stream to drain.")] = (
        1_000_000
    ),
    workers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=16, help="Ingest workers; may be given again.", show_default="1 and 2"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine stores samples, on a NATS and a PostgreSQL of its own, beside their limits.

    Nothing that runs is touched. Takes a minute or two. Exit status 1 when samples were lost or doubled.
    """
    from cncmon_standalone.bench import command

    raise typer.Exit(_run(command.run(command.Options(samples, tuple(workers or (1, 2)), as_json))))


@app.command(short_help="What runs, its addresses, what waits.")
def status(data: Data = None, as_json: Json = False) -> None:
    """What runs, its addresses, how much waits to be stored, and the machines. Exit status 3 when nothing runs."""
    from cncmon_standalone import status as command

    _run(command.run(data, as_json=as_json))


@app.command()
def down(data: Data = None) -> None:
    """Stop what runs, in order."""
    from cncmon_standalone import down as command

    command.run(data)


@app.command(short_help="Check everything, and say what to do.")
def doctor(
    data: Data = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", metavar="FILE_OR_DIR", exists=True, help="Machine documents to check as well."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine, your documents and what runs, and say what to do. Exit status 1 when a check fails."""
    from cncmon_standalone.doctor import run as command

    raise typer.Exit(_run(command.run(data, files or [], as_json=as_json)))


def _edge_of(text: str | None, option: str = "--edge") -> tuple[str, str] | None:
    if text is None:
        return None
    site, _, edge = text.partition("/")
    if not (site and edge) or "/" in edge:
        raise typer.BadParameter(f"{text!r} is no edge: write it as SITE/EDGE", param_hint=option)
    return site, edge


Dsn = Annotated[
    str | None,
    typer.Option(metavar="URL", help="PostgreSQL URL of the database.", show_default="that of the system that runs"),
]
Edge = Annotated[str | None, typer.Option("--edge", metavar="SITE/EDGE", help="Only of this edge.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="REASON", help="Only for this reason; may be given again.")
]
Since = Annotated[
    float | None, typer.Option("--since", metavar="DURATION", parser=_seconds, help="Only of this last time, as 30m.")
]
Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...")]


def _which(
    what: str, ids: list[int] | None, every: bool, reasons: list[str] | None, edge: str | None, since_s: float | None
) -> Any:
    """Return the dead letters that are meant: by id, by conditions, or all; nothing is meant by itself."""
    from cncmon_ingest.dlq import Which

    chosen = Which(
        ids=tuple(ids or ()), reasons=tuple(reasons or ()), edge=_edge_of(edge),
        age_max=None if since_s is None else timedelta(seconds=since_s),
    )  # fmt: skip
    by_condition = chosen != Which(ids=chosen.ids)
    if bool(ids) + by_condition + every != 1:
        raise UnusableError(
            f"say which: cncmon dlq {what} ID …, or by --reason, --edge, --since, or cncmon dlq {what} --all"
        )
    return chosen


@dlq.command("ls")
def dlq_ls(
    data: Data = None,
    dsn: Dsn = None,
    reasons: Reasons = None,
    edge: Edge = None,
    since_s: Since = None,
    every: Annotated[bool, typer.Option("--all", help="Those replayed or given up, too.")] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Only how many there are of each reason.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first, and how many there are of each reason."""
    from cncmon_ingest.dlq import Which
    from cncmon_standalone import dead_letters as command

    which = Which(
        reasons=tuple(reasons or ()), edge=_edge_of(edge), state=None if every else "dead",
        age_max=None if since_s is None else timedelta(seconds=since_s),
    )  # fmt: skip
    _run(command.ls(data, which, dsn=dsn, counts=counts, limit=limit, as_json=as_json))


@dlq.command("show")
def dlq_show(
    id_: Annotated[int, typer.Argument(metavar="ID")], data: Data = None, dsn: Dsn = None, as_json: Json = False
) -> None:
    """Show one dead letter: reason, headers, bytes."""
    from cncmon_standalone import dead_letters as command

    _run(command.show(data, id_, dsn=dsn, as_json=as_json))


@dlq.command("replay")
def dlq_replay(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    reasons: Reasons = None,
    edge: Edge = None,
    since_s: Since = None,
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Try to store dead letters again. Exit status 1 when one of them is still refused."""
    which = _which("replay", ids, every, reasons, edge, since_s)
    from cncmon_standalone import dead_letters as command

    raise typer.Exit(_run(command.replay(data, which, dsn=dsn, as_json=as_json)))


@dlq.command("drop")
def dlq_drop(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    reasons: Reasons = None,
    edge: Edge = None,
    since_s: Since = None,
    confirmed: Annotated[bool, typer.Option("--yes", help="They are to be given up.")] = False,
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Give dead letters up: they stay listed and counted, and are not replayed any more."""
    which = _which("drop", ids, every, reasons, edge, since_s)
    from cncmon_standalone import dead_letters as command

    raise typer.Exit(_run(command.drop(data, which, dsn=dsn, confirmed=confirmed, as_json=as_json)))


@owned.command("ls")
def machines_ls(
    machine: Annotated[str | None, typer.Argument(metavar="[MACHINE]", help="Only this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The first so many.")] = 1000,
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """List whose machines are, and since when."""
    from cncmon_standalone import machine_owners as command

    _run(command.ls(data, machine, dsn=dsn, limit=limit, as_json=as_json))


@owned.command("hand-over")
def machines_hand_over(
    to: Annotated[str, typer.Option("--to", metavar="SITE/EDGE", help="The edge that reads them.")],
    machines: Annotated[list[str] | None, typer.Argument(metavar="[MACHINE]...")] = None,
    edge: Annotated[
        str | None, typer.Option("--edge", metavar="SITE/EDGE", help="All that belong to this edge.")
    ] = None,
    from_text: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Of which samples on, as 2026-11-30T06:00:00Z; beginning; now."),
    ] = None,
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Let an edge of another site own machines, from a time on; within a site they move by themselves.

    What the old edge still has from before that time stays its own. Exit status 1 when a machine is not known.
    """
    from cncmon_standalone import machine_owners as command

    receiver = _edge_of(to, "--to")
    if receiver is None:
        raise UnusableError("say to which edge: --to SITE/EDGE")
    asked = command.hand_over(
        data, machines or [], of_edge=_edge_of(edge), to=receiver, from_text=from_text, dsn=dsn, as_json=as_json
    )
    raise typer.Exit(_run(asked))


@app.command("import", short_help="Store what was exported from an edge.")
def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exports (JSON lines or Parquet).")],
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Store what `cncmon-agent buffer export` took from an edge, exactly once, whatever the edge delivers itself.

    It may be stopped and run again. Exit status 1 when something in the files is damaged; the rest of them is stored.
    """
    from cncmon_standalone import importing as command

    raise typer.Exit(_run(command.run(data, files, dsn=dsn, as_json=as_json)))


@app.command(short_help="Is all there? Stored + dead + gaps = accepted.")
def reconcile(
    data: Data = None,
    dsn: Dsn = None,
    edge: Edge = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="First store dead letters again that can be stored now.")
    ] = False,
    reread: Annotated[
        bool, typer.Option("--reread", help="First have all that the stream holds read again; takes half a minute.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check for every epoch of every edge that stored + dead + gaps = accepted, in batches and samples.

    What an edge still has is on its way and no fault. Exit status 1 when something does not balance.
    """
    from cncmon_standalone import reconciling as command

    raise typer.Exit(
        _run(command.run(data, dsn=dsn, edge=_edge_of(edge), replay=replay, reread=reread, as_json=as_json))
    )


@db.command("size", short_help="What the tables take, and will in a year.")
def db_size(data: Data = None, dsn: Dsn = None, as_json: Json = False) -> None:
    """Say what the tables take, a million samples of them, and a year at the pace so far."""
    from cncmon_standalone import database_care as command

    _run(command.size(data, dsn=dsn, as_json=as_json))


@db.command("check", short_help="Is it what this program needs?")
def db_check(data: Data = None, dsn: Dsn = None, as_json: Json = False) -> None:
    """Check that a database is what this program needs. Exit status 1 when something has to be done."""
    from cncmon_standalone import database_care as command

    raise typer.Exit(_run(command.check(data, dsn=dsn, as_json=as_json)))


@db.command("adopt", short_help="Let this database lead from now on.")
def db_adopt(data: Data = None, dsn: Dsn = None, as_json: Json = False) -> None:
    """Let this database lead although the stream's samples went into another one.

    Needed once after a backup was restored into another cluster, after pg_upgrade, and to go back to an older timeline.
    `cncmon up` does it by itself. Make sure first that ingest stores into no other database any more.
    """
    from cncmon_standalone import adopting as command

    _run(command.run(data, dsn=dsn, as_json=as_json))


@db.command("recompute", short_help="Compute rollups and states again.")
def db_recompute(
    since_s: Annotated[
        float | None,
        typer.Option("--since", metavar="DURATION", parser=_seconds, help="Only of this last time, as 2d."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what could not be computed before.")] = False,
    data: Data = None,
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Compute rollups and state intervals again from the samples. Exit status 1 when some can't be computed."""
    from cncmon_standalone import database_care as command

    raise typer.Exit(_run(command.recompute(data, dsn=dsn, since_s=since_s, failed=failed, as_json=as_json)))


@db.command("upgrade", short_help="Bring the tables to this version.")
def db_upgrade(data: Data = None, dsn: Dsn = None, as_json: Json = False) -> None:
    """Bring the tables to this program's version. May be stopped and run again."""
    from cncmon_standalone import database_care as command

    _run(command.upgrade(data, dsn=dsn, as_json=as_json))


def _run[T](work: Coroutine[None, None, T]) -> T:
    return asyncio.run(work)


def main() -> None:
    """Run a command; what the user can act on is told in a sentence, without a traceback."""
    try:
        app()
    except StandaloneError as error:
        print(f"cncmon: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(141)  # the reader of our output left (128 + SIGPIPE)


if __name__ == "__main__":
    main()
