"""The routes under /api/v1. Answers are bytes that msgspec made; FastAPI reads the parameters and documents them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from cncmon_api import __version__, edges, intervals, params, samples, series
from cncmon_api.database import Database
from cncmon_api.errors import BadRequestError
from cncmon_api.live import Hub, Subscription
from cncmon_api.models import (
    DatabaseStatus,
    EdgeList,
    MachineList,
    SamplePage,
    Series,
    StateIntervals,
    Status,
    encode,
)
from cncmon_api.poller import Poller
from cncmon_api.settings import ApiSettings
from cncmon_api.sse import LiveResponse

RANGE_DEFAULT: Final = timedelta(minutes=10)
CLOSED_AFTER: Final = timedelta(minutes=1)
"""A range that ended longer ago rarely changes: its pages get an entity tag. Late rows change bytes and tag."""

router = APIRouter(
    prefix="/api/v1",
    default_response_class=Response,
    dependencies=[Depends(params.check_names)],
)

MachineId = Annotated[str, Path(description="Id as in GET /api/v1/machines.")]
_TIME: Final[dict[str, Any]] = {"json_schema_extra": {"format": "date-time"}}
From = Annotated[
    str | None,
    Query(alias="from", description="Begin, inclusive, RFC 3339 with zone. Default: 10 min before `to`.", **_TIME),
]
To = Annotated[str | None, Query(description="End, exclusive, RFC 3339 with zone. Default: now.", **_TIME)]


def _answers(struct: type, *also: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI is told about a route: its struct, and the errors it can answer with."""
    reference = {"$ref": f"#/components/schemas/{struct.__name__}"}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "OK", "content": {"application/json": {"schema": reference}}}
    }
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    texts = {400: "The request can't be used", 404: "No such machine", 503: "Not available now; see Retry-After"}
    return answers | {code: {"description": texts[code], "content": problem} for code in also}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})


@router.get("/machines", summary="Machines with state and newest sample", responses=_answers(MachineList, 400, 503))
async def machines(
    request: Request,
    after: Annotated[str, Query(description="Only those behind this id: `next_after` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=params.MACHINES_MAX, description="At most so many.")] = params.MACHINES_MAX,
) -> Response:
    """List machines, sorted by id, as they were at most one tick ago; a page of them where there are many."""
    poller: Poller = request.app.state.poller
    fleet = await poller.refresh()
    now = datetime.now(UTC)
    found = fleet.machines(now, after, limit + 1)
    page, more = found[:limit], len(found) > limit
    return _json(encode(MachineList(now, page, page[-1].id if more else None)))


@router.get(
    "/machines/{machine_id:path}/samples",
    summary="Samples of a machine, ascending",
    responses=_answers(SamplePage, 400, 404, 503) | {304: {"description": "Unchanged since the page with that tag"}},
)
async def machine_samples(
    request: Request,
    machine_id: MachineId,
    begin: From = None,
    to: To = None,
    limit: Annotated[
        int, Query(ge=1, le=samples.LIMIT_MAX, description="Samples in one page.")
    ] = samples.LIMIT_DEFAULT,
    cursor: Annotated[
        str | None,
        Query(description="`next_cursor` of the page before; it holds the range, `from` and `to` are ignored."),
    ] = None,
    if_none_match: Annotated[str | None, Header(description="Entity tag of a page that the caller has.")] = None,
) -> Response:
    """Return one page of samples in [from, to). Walk on with `cursor` until `next_cursor` is null."""
    database: Database = request.app.state.database
    params.check_machine_id(machine_id)
    place = None if cursor is None else samples.decode_cursor(cursor)
    now = datetime.now(UTC)
    since, until = (now, samples.end_of(place)) if place else _range(begin, to, now)
    page = await samples.read_page(database, machine_id, since, until, limit, place)
    if not page.samples:
        await _check_exists(database, machine_id)
    body = encode(page)
    if until > now - CLOSED_AFTER:
        return _json(body)
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.get(
    "/machines/{machine_id:path}/series",
    summary="Minimum, mean and maximum over time",
    responses=_answers(Series, 400, 404, 503),
)
async def machine_series(
    request: Request,
    machine_id: MachineId,
    begin: From = None,
    to: To = None,
    fields: Annotated[str, Query(description="Numeric fields, comma-separated.")] = series.FIELDS_DEFAULT,
    points: Annotated[int, Query(ge=1, le=series.POINTS_MAX, description="Buckets at most.")] = series.POINTS_DEFAULT,
) -> Response:
    """Return the fields over [from, to) in equal buckets. A bucket without samples holds nulls: a hole stays a hole."""
    database: Database = request.app.state.database
    settings: ApiSettings = request.app.state.settings
    params.check_machine_id(machine_id)
    since, until = _range(begin, to, datetime.now(UTC))
    if until - since > timedelta(days=settings.range_days_max):
        raise BadRequestError(f"The range is longer than {settings.range_days_max} days: ask for several in turn.")
    if since == until:
        raise BadRequestError("The range is empty: to must be after from.")
    answer, found = await series.read_series(database, machine_id, since, until, params.fields_of(fields), points)
    if not found:
        await _check_exists(database, machine_id)
    return _json(encode(answer))


@router.get(
    "/machines/{machine_id:path}/states",
    summary="What a machine was doing",
    responses=_answers(StateIntervals, 400, 404, 503),
)
async def machine_states(
    request: Request,
    machine_id: MachineId,
    begin: From = None,
    to: To = None,
    limit: Annotated[
        int, Query(ge=1, le=intervals.LIMIT_MAX, description="Intervals in one answer.")
    ] = intervals.LIMIT_DEFAULT,
) -> Response:
    """Return state intervals over [from, to), in order; they end now at the latest."""
    database: Database = request.app.state.database
    params.check_machine_id(machine_id)
    since, until = _range(begin, to, datetime.now(UTC))
    settings: ApiSettings = request.app.state.settings
    silent_after = timedelta(milliseconds=settings.edge_stale_after_ms)
    answer = await intervals.read_intervals(database, machine_id, since, until, limit, silent_after)
    if not answer.intervals:
        await _check_exists(database, machine_id)
    return _json(encode(answer))


@router.get(
    "/live",
    summary="News as server-sent events",
    responses={
        200: {
            "description": "Events `machines` (MachineInfos, first and on every change of a state or of the set), "
            "`samples` (LiveSamples) and `status` (LiveStatus, when the database goes or comes).",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **{code: answer for code, answer in _answers(Status, 400, 503).items() if code != 200},
    },
)
async def live(
    request: Request,
    machines: Annotated[str | None, Query(description="Only these, comma-separated. Default: all.")] = None,
    every: Annotated[
        str,
        Query(
            pattern="^(latest|all)$",
            description="latest: the newest sample of each machine that has new ones; all: every new sample "
            f"(then `machines` is needed, at most {params.LIVE_ALL_MACHINES_MAX}).",
        ),
    ] = "latest",
) -> Response:
    """Open a live stream. Late rows (older than the newest that was sent) are not in it; they are in the samples."""
    hub: Hub = request.app.state.hub
    names = params.names_of(machines or "")
    if machines is not None and not names:
        raise BadRequestError("machines is empty: name some, comma-separated, or leave it out for all.")
    if every == "all" and not 0 < len(names) <= params.LIVE_ALL_MACHINES_MAX:
        raise BadRequestError(f"every=all needs machines=…: 1 to {params.LIVE_ALL_MACHINES_MAX} ids, comma-separated.")
    if len(names) > params.LIVE_MACHINES_MAX:
        raise BadRequestError(f"machines names {len(names)}: at most {params.LIVE_MACHINES_MAX}, or leave it out.")
    wants = Subscription(frozenset(names) if names else None, every == "all")
    return LiveResponse(hub, hub.join(wants))


@router.get("/edges", summary="All edges with buffer, configuration and clock", responses=_answers(EdgeList, 503))
async def edge_list(request: Request) -> Response:
    """List the edges as their last heartbeats told, sorted by site and name."""
    database: Database = request.app.state.database
    settings: ApiSettings = request.app.state.settings
    found = await edges.read_edges(database, timedelta(milliseconds=settings.edge_stale_after_ms))
    return _json(encode(found))


@router.get("/status", summary="How the API itself is", responses=_answers(Status))
async def status(request: Request) -> Response:
    """Tell version, database and load; answers also while the database is away."""
    state = request.app.state
    trouble = state.poller.trouble
    answer = Status(
        version=__version__,
        database=DatabaseStatus(trouble is None, trouble or ""),
        machines=len(state.poller.fleet.by_id),
        live_clients=len(state.hub.clients),
    )
    return _json(encode(answer))


def _range(begin: str | None, end: str | None, now: datetime) -> tuple[datetime, datetime]:
    until = now if end is None else params.time_of("to", end)
    since = until - RANGE_DEFAULT if begin is None else params.time_of("from", begin)
    params.check_order(since, until)
    return since, until


async def _check_exists(database: Database, machine_id: str) -> None:
    if not await database.fetch("SELECT FROM machines WHERE machine_id = $1", machine_id):
        raise params.no_machine(machine_id)


def _matches(if_none_match: str | None, tag: str) -> bool:
    """Compare weakly, as RFC 9110 section 13.1.2 has it."""
    tags = [item.strip().removeprefix("W/") for item in (if_none_match or "").split(",")]
    return tag in tags or "*" in tags
