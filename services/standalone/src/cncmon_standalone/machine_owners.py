"""`cncmon machines`: whose machines are, and handing them over to an edge of another site."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

from cncmon_core import names
from cncmon_core.errors import InvalidNameError
from cncmon_core.names import Origin
from cncmon_ingest import owners
from cncmon_standalone import console
from cncmon_standalone.database import connected
from cncmon_standalone.errors import UnusableError

_LISTED = """
SELECT machine_id, site, edge,
    CASE WHEN from_time = '-infinity' THEN NULL ELSE from_time END AS from_time
FROM machine_owners WHERE $1::text IS NULL OR machine_id = $1
ORDER BY machine_id, machine_owners.from_time LIMIT $2
"""


async def ls(data: Path | None, machine_id: str | None, *, dsn: str | None, limit: int, as_json: bool) -> None:
    """Print whose machines are, and since when."""
    async with connected(data, dsn) as connection:
        found = [dict(row) for row in await connection.fetch(_LISTED, machine_id, limit)]
    if as_json:
        _print_json(found)
        return
    out = console.for_people()
    if not found:
        out.print(
            "None of these. Machines that only senders without a site have sent belong to nobody.", soft_wrap=True
        )
    for row in found:
        since = "always" if row["from_time"] is None else f"since {row['from_time']:%Y-%m-%d %H:%M:%S} UTC"
        out.print(f"{escape(row['machine_id'])}  {escape(row['site'])}/{escape(row['edge'])}  {since}", soft_wrap=True)


async def hand_over(
    data: Path | None,
    machine_ids: list[str],
    *,
    of_edge: tuple[str, str] | None,
    to: tuple[str, str],
    from_text: str | None,
    dsn: str | None,
    as_json: bool,
) -> int:
    """Let an edge own machines from a time on; return the exit status: 1 where one that was named is not known.

    Raises:
        UnusableError: what was asked for can't be done; says why.
    """
    if bool(machine_ids) == bool(of_edge):
        raise UnusableError("say which: cncmon machines hand-over MACHINE … --to SITE/EDGE, or all of an edge: --edge")
    try:
        origin = Origin(names.check_name("site", to[0]), names.check_name("edge", to[1]))
    except InvalidNameError as error:
        raise UnusableError(str(error)) from error
    from_time = _from(from_text)
    async with connected(data, dsn) as connection:
        wanted = machine_ids
        if of_edge:
            query = "SELECT machine_id FROM machines WHERE (site, edge) = ($1, $2) ORDER BY 1"
            wanted = [row["machine_id"] for row in await connection.fetch(query, *of_edge)]
        if from_time is _NOW:
            from_time = await connection.fetchval("SELECT now()")
        known = await owners.hand_over(connection, wanted, origin, from_time)
    unknown = sorted(set(wanted) - set(known))
    if as_json:
        since = None if from_time is None else from_time.isoformat()
        _print_json({"machines": known, "unknown": unknown, "site": origin.site, "edge": origin.edge, "from": since})
        return 1 if unknown else 0
    out = console.for_people()
    since = "whenever they were" if from_time is None else f"from {from_time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC on"
    out.print(
        f"{len(known):,} machines: their samples {since} are taken from {origin.site}/{origin.edge}.", soft_wrap=True
    )
    for machine_id in unknown:
        out.print(f"  [red]×[/] {escape(machine_id)}: no sample of it was ever stored", soft_wrap=True)
    out.print("What was refused of them can be stored now: cncmon dlq replay --reason foreign_machine", soft_wrap=True)
    return 1 if unknown else 0


_NOW = datetime.min.replace(tzinfo=UTC)
"""In the place of a time: now, by the database's clock."""


def _from(text: str | None) -> datetime | None:
    """Return a time; None: from the beginning."""
    if text is None or text == "now":
        return _NOW
    if text == "beginning":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UnusableError(f"--from {text!r} is no time: write it as 2026-11-30T06:00:00Z, or beginning, or now")
    return moment


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
