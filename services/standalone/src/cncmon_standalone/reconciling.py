"""`cncmon reconcile`: whether stored + dead + gaps = accepted, for every epoch of every edge."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from cncmon_ingest import dlq
from cncmon_ingest.reconcile import Account, Books, reconcile
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone import console
from cncmon_standalone.database import connected


async def run(data: Path | None, *, dsn: str | None, edge: tuple[str, str] | None, replay: bool, as_json: bool) -> int:
    """Print the books of all edges or of one; return the exit status: 1 where they don't balance.

    replay: store dead letters again first, where that can be done now.

    Raises:
        StandaloneError: nothing runs, or the database does not answer or has other tables.
    """
    settings = IngestSettings(database_dsn="unused")
    async with connected(data, dsn) as connection:
        if replay:
            ids = await dlq.chosen(connection, dlq.Which(edge=edge))
            with console.bar("Storing again", len(ids)) as advance:
                async for _ in dlq.replay(connection, ids, settings):
                    advance()
        books = await reconcile(connection, timedelta(seconds=settings.abandon_grace_s), edge)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(books)).decode())
    else:
        _print(console.for_people(), books)
    return 0 if books.balanced else 1


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
