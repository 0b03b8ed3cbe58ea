"""`cncmon import`: stores what `cncmon-agent buffer export` took from an edge, exactly once."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.markup import escape

from cncmon_ingest import importer
from cncmon_ingest.errors import MigrationError, OutageError
from cncmon_ingest.importer import Summary
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import console, state
from cncmon_standalone.errors import StandaloneError

SAY_EVERY_S: Final = 1.0
DAMAGE_SHOWN_MAX: Final = 20


async def run(data: Path | None, files: Sequence[Path], *, dsn: str | None, as_json: bool) -> int:
    """Import files into the running system's database, or another one; return the exit status.

    Raises:
        StandaloneError: nothing runs, or the database can't be used.
    """
    settings = IngestSettings(database_dsn=dsn or state.find(data).database_dsn)
    out = console.Progress(console.for_people(to_stderr=as_json))
    said_s = time.monotonic()

    def progress(summary: Summary) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            done = summary.batches_new + summary.batches_known + summary.batches_dead
            out.status(f"  {done:,} batches, {summary.samples:,} samples stored, {summary.damaged:,} damaged")

    try:
        summary = await importer.run(settings, files, progress)
    except OutageError as error:
        raise StandaloneError(
            f"the database can't be used: {error}. Run the same command again: what is stored is known"
        ) from error
    except MigrationError as error:
        raise StandaloneError(f"{error}: run `cncmon-ingest bootstrap` of the same version") from error
    finally:
        out.end_status()
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        _print(out, summary)
    return 1 if summary.damaged else 0


def _print(out: console.Progress, summary: Summary) -> None:
    for said in summary.damage[:DAMAGE_SHOWN_MAX]:
        out.warn(said)
    if summary.damaged > DAMAGE_SHOWN_MAX:
        out.warn(f"{summary.damaged - DAMAGE_SHOWN_MAX:,} more that could not be used; --json lists them")
    dead = summary.batches_dead + summary.frames_dead
    out.line(
        f"{_number(summary.batches_new, 'batch')} new with {_number(summary.samples, 'sample')}, "
        f"{_number(summary.batches_known, 'batch')} known already, "
        f"{_number(dead, 'dead letter')}{escape(' (see: cncmon dlq ls)') if dead else ''}, "
        f"{_number(summary.damaged, 'damaged place')} in {_number(summary.files, 'file')}"
    )


def _number(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"
