"""Reading what a caller wrote: times, field lists, names. Everything that can't be used is refused with what can."""

from collections import Counter
from datetime import UTC, datetime
from typing import Final

from fastapi import Request
from fastapi.routing import APIRoute

from cncmon_api.errors import BadRequestError, NotFoundError
from cncmon_api.rows import NUMERIC
from cncmon_core.sample import MACHINE_ID_BYTES_MAX

YEAR_MIN: Final = 1970
YEAR_MAX: Final = 2200
"""Wide enough for any machine, and far from what PostgreSQL or Python can't hold."""

FIELDS_MAX: Final = 16
LIVE_ALL_MACHINES_MAX: Final = 20
LIVE_MACHINES_MAX: Final = 500
MACHINES_MAX: Final = 1000
"""Machines in one page of the list, some 600 kB."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def time_of(name: str, text: str) -> datetime:
    """Return the UTC time that a parameter states.

    Raises:
        BadRequestError: not RFC 3339, without zone, or out of range.
    """
    allowed = (
        "write RFC 3339 with a zone, such as 2026-11-24T10:00:00Z (a + in a URL is written %2B), "
        f"from {YEAR_MIN} to {YEAR_MAX - 1}"
    )
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequestError(f"{name}={text[:64]!r} is no time: {allowed}.") from error
    if moment.tzinfo is None:
        raise BadRequestError(f"{name}={text[:64]!r} has no time zone: {allowed}.")
    # First the rough check: year 1 or 9999 can overflow when its zone is taken off.
    if YEAR_MIN - 1 <= moment.year <= YEAR_MAX and YEAR_MIN <= (moment := moment.astimezone(UTC)).year < YEAR_MAX:
        return moment
    raise BadRequestError(f"{name}={text[:64]!r} is out of range: {allowed}.")


async def check_names(request: Request) -> None:
    """Refuse a query with a parameter that the route does not have, or has twice: a misspelt one asks for all.

    Raises:
        BadRequestError: names the parameter, and those that there are.
    """
    route: APIRoute = request.scope["route"]
    allowed = sorted(field.alias for field in route.dependant.query_params)
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in allowed:
            there = f"allowed are {', '.join(allowed)}" if allowed else "there are none at this path"
            raise BadRequestError(f"{name[:64]!r} is no parameter: {there}.")
        if times > 1:
            raise BadRequestError(f"{name} is there {times} times: once is enough.")


def check_order(begin: datetime, end: datetime) -> None:
    """Refuse a range that ends before it begins."""
    if end < begin:
        raise BadRequestError(f"from ({begin.isoformat()}) is after to ({end.isoformat()}): swap them.")


def fields_of(text: str) -> list[str]:
    """Return the fields of a comma-separated list, each once, in order.

    Raises:
        BadRequestError: one of them is not numeric or not there, or there are too many.
    """
    names = names_of(text)
    unknown = [name for name in names if name not in NUMERIC]
    if unknown or not names:
        what = f"fields holds {unknown[0][:64]!r}" if unknown else "fields is empty"
        raise BadRequestError(f"{what}: allowed are {', '.join(sorted(NUMERIC))}, separated by commas.")
    if len(names) > FIELDS_MAX:
        raise BadRequestError(f"fields names {len(names)} fields: at most {FIELDS_MAX} at once.")
    return names


def names_of(text: str) -> list[str]:
    """Return the names of a comma-separated list, each once, in order."""
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def check_machine_id(machine_id: str) -> str:
    """Return the id if a machine can have it at all.

    Raises:
        NotFoundError: it can't, so there is no such machine.
    """
    if not machine_id or len(machine_id.encode()) > MACHINE_ID_BYTES_MAX or "\0" in machine_id:
        raise NotFoundError("No machine has such an id; GET /api/v1/machines lists those there are.")
    return machine_id


def no_machine(machine_id: str) -> NotFoundError:
    """Return the exception for a machine that isn't there."""
    return NotFoundError(f"There is no machine {machine_id!r}; GET /api/v1/machines lists those there are.")
