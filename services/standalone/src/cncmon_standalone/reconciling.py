"""`cncmon reconcile`: whether stored + dead + gaps = accepted, for every epoch of every edge."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
from rich.markup import escape
from rich.table import Table

from cncmon_ingest import dlq
from cncmon_ingest.reconcile import Account, Books, reconcile
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import console
from cncmon_standalone.database import connected
from cncmon_standalone.errors import StandaloneError

# Up to 99 until it has ended: what others acknowledge meanwhile is looked at for a while.
_REREAD = """
SELECT generation, reread_ended IS NOT NULL AS ended,
       least(99, greatest(0, 100 * (committed_floor - reread_from + 1) / greatest(1, reread_to - reread_from + 1)))::int
           AS percent
FROM delivery
"""


HEARD_S_MAX: Final = 15.0
"""A leader that is there notices within a round of its care for the stream."""


async def run(
    data: Path | None,
    *,
    dsn: str | None,
    edge: tuple[str, str] | None,
    replay: bool,
    reread: bool,
    as_json: bool,
) -> int:
    """Print the books of all edges or of one; return the exit status: 1 where they don't balance.

    replay: store dead letters again first, where that can be done now. reread: have ingest read the stream again first.

    Raises:
        StandaloneError: nothing runs, the database does not answer or has other tables, or no ingest worker leads.
    """
    settings = IngestSettings(database_dsn="unused")
    async with connected(data, dsn) as connection:
        if replay:
            ids = await dlq.chosen(connection, dlq.Which(edge=edge))
            with console.bar("Storing again", len(ids)) as advance:
                async for _ in dlq.replay(connection, ids, settings):
                    advance()
        if reread:
            await _reread(connection)
        books = await reconcile(connection, timedelta(seconds=settings.abandon_grace_s), edge)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(books)).decode())
    else:
        _print(console.for_people(), books)
    return 0 if books.balanced else 1


async def _reread(connection: asyncpg.Connection) -> None:
    before = await connection.fetchval("UPDATE delivery SET reread_asked = true RETURNING generation")
    with console.bar("Reading the stream again", 100) as advance:
        done = 0
        deadline_s = time.monotonic() + HEARD_S_MAX
        while True:
            row = await connection.fetchrow(_REREAD)
            if row is None:
                raise AssertionError("the table delivery always has its row")
            if row["generation"] > before:
                if row["ended"]:
                    advance(100 - done)
                    return
                advance(row["percent"] - done)
                done = row["percent"]
            elif time.monotonic() > deadline_s:
                raise StandaloneError(
                    f"no ingest worker has begun to read the stream again within {HEARD_S_MAX:.0f} s: is one running? "
                    "It will as soon as one does"
                )
            await asyncio.sleep(0.2)


def _print(out: Any, books: Books) -> None:
    way = f", {books.pending_batches:,} on their way" if books.pending_batches else ""
    out.print(
        f"{books.accepted_batches:,} batches accepted in {books.epochs:,} epochs: {books.stored_batches:,} stored, "
        f"{books.dead_batches:,} dead, {books.gap_batches:,} in gaps{way}.",
        soft_wrap=True,
    )
    out.print(
        f"{books.stored_samples:,} samples stored, {books.dead_samples:,} dead, {books.gap_samples:,} in gaps.",
        soft_wrap=True,
    )
    if books.pending:
        out.print("\nOn their way, from edges that have them:")
        out.print(_table(books.pending, "on their way", lambda account: f"{account.pending_batches:,}"))
    if books.unbalanced:
        out.print("\n[red]Does not balance:[/]")
        out.print(_table(books.unbalanced, "", lambda account: account.problem or ""))
    else:
        out.print("[green]√[/] every epoch balances")


def _table(accounts: Sequence[Account], last: str, of: Any) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("site/edge")
    table.add_column("epoch", justify="right")
    for title in ("accepted", "stored", "dead", "gaps"):
        table.add_column(title, justify="right")
    table.add_column(last)
    for account in accounts:
        table.add_row(
            escape(f"{account.site}/{account.edge}"),
            str(account.epoch),
            *(
                f"{batches:,} ({'?' if samples is None else f'{samples:,}'})"
                for batches, samples in (
                    (account.accepted_batches, account.accepted_samples),
                    (account.stored_batches, account.stored_samples),
                    (account.dead_batches, account.dead_samples),
                    (account.gap_batches, None if account.gaps_uncounted else account.gap_samples),
                )
            ),
            escape(of(account)),
        )
    table.caption = "batches (samples)"
    table.caption_justify = "left"
    return table
