"""The settings of the query API (`CNCMON_API_…`)."""

from typing import Annotated

from msgspec import Meta, Struct

SECTION = "API"


class ApiSettings(Struct, frozen=True, kw_only=True):
    """Where the API listens, where its database is, and every bound it keeps. Times in ms, sizes as counts."""

    database_dsn: Annotated[
        str, Meta(min_length=1, description="PostgreSQL URL; holds a password. A role that may only read is enough.")
    ]
    host: Annotated[str, Meta(description="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8480
    pool_size: Annotated[int, Meta(ge=2, le=100, description="Database connections at most; one serves live.")] = 8
    database_timeout_ms: Annotated[
        int, Meta(ge=100, le=60_000, description="Longest wait for a connection, free or new, before answering 503.")
    ] = 5_000
    statement_timeout_ms: Annotated[
        int, Meta(ge=100, le=300_000, description="The database ends a query that takes longer; the answer is 503.")
    ] = 10_000
    stale_after_ms: Annotated[
        int,
        Meta(
            ge=1_000,
            description="There is no data of a machine whose last sample is older; "
            "later where its samples are further apart.",
        ),
    ] = 15_000
    edge_stale_after_ms: Annotated[
        int,
        Meta(ge=1_000, description="An edge whose last heartbeat came longer ago is silent; they send every 5 s."),
    ] = 15_000
    tick_ms: Annotated[int, Meta(ge=50, le=10_000, description="How often live clients get news.")] = 500
    idle_tick_ms: Annotated[
        int, Meta(ge=50, le=60_000, description="How often states are followed while no live client is there.")
    ] = 2_000
    lookback_ms: Annotated[
        int, Meta(ge=0, le=86_400_000, description="How far back the beginning of a state is searched at start.")
    ] = 3_600_000
    range_days_max: Annotated[int, Meta(ge=1, le=3_660, description="Longest range of one request for a series.")] = 366
    concurrent_requests_max: Annotated[
        int, Meta(ge=1, description="Requests in work at once; beyond it the answer is 503 with Retry-After.")
    ] = 64
    connections_max: Annotated[
        int, Meta(ge=8, description="Open HTTP connections; beyond it a new one gets 503 and is closed.")
    ] = 2_000
    live_clients_max: Annotated[int, Meta(ge=0, description="Live streams at once; beyond it the answer is 503.")] = 500
    live_queue_max: Annotated[
        int, Meta(ge=2, description="Messages that may wait for a slow live client before it is dropped.")
    ] = 20
    header_timeout_ms: Annotated[
        int, Meta(ge=100, description="A client that has not sent its whole request by then is cut off.")
    ] = 10_000
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Names that requests may call this service by, e.g. cnc.example, *.plant.example; none. "
            "Addresses, names without a dot and those under .local, .lan, .internal, .home.arpa and .svc are always "
            "allowed."
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...], Meta(description="Origins whose pages may read the API, e.g. https://wall.example; none.")
    ] = ()
