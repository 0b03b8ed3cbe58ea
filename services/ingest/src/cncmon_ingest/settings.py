"""Settings of ingest (`CNCMON_INGEST_…`)."""

from typing import Annotated

from msgspec import Meta, Struct


class IngestSettings(Struct, frozen=True):
    """What a worker and the bootstrap need to know."""

    database_dsn: Annotated[
        str, Meta(min_length=1, description="postgresql:// URL of the database, password included.")
    ]
    extra_subjects: Annotated[
        list[str], Meta(description="Subjects that CNC_DATA captures beside CNC_DATA.>, such as CNC.EDGE.*")
    ] = []
    fetch_messages: Annotated[int, Meta(ge=1, le=5000, description="Most messages in one transaction.")] = 500
    fetch_bytes: Annotated[int, Meta(ge=1 << 20, description="Most bytes asked of the stream at once.")] = 8 << 20
    workers_max: Annotated[
        int, Meta(ge=1, description="Most workers side by side; max_ack_pending is 4 × this × fetch_messages.")
    ] = 16
    ack_wait_ms: Annotated[int, Meta(ge=1000, description="Redelivered when not acknowledged for so long.")] = 30_000
    max_deliver: Annotated[
        int, Meta(ge=1, description="Delivered more often, a message is tried in the isolated process.")
    ] = 3
    suspect_ms_max: Annotated[
        int, Meta(ge=1000, description="A message tried alone is a dead letter after so long without an answer.")
    ] = 60_000
    stream_bytes_max: Annotated[int, Meta(ge=1 << 20, description="max_bytes of CNC_DATA.")] = 2 << 30
    stream_messages_max: Annotated[int, Meta(ge=1000, description="max_msgs of CNC_DATA.")] = 1_000_000
    stream_messages_per_edge_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Most messages of CNC_DATA on one subject: an edge that has so many is refused. 0: no share.",
        ),
    ] = 500_000
    stream_bytes_per_edge_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Most bytes of an edge in CNC_DATA that are not committed: it keeps the rest. 0: no share.",
        ),
    ] = 512 << 20
    stream_age_s_max: Annotated[int, Meta(ge=60, description="max_age of CNC_DATA.")] = 24 * 3600
    stream_replicas: Annotated[int, Meta(ge=1, le=5, description="Replicas of streams and buckets.")] = 1
    duplicate_window_s: Annotated[int, Meta(ge=1, description="JetStream's own duplicate window.")] = 120
    future_s_max: Annotated[int, Meta(ge=0, description="Samples further ahead than this are dead letters.")] = 300
    retention_days: Annotated[
        int,
        Meta(ge=0, description="Samples are kept so long; older ones are dead letters (too_old). 0: for ever."),
    ] = 3650
    retention_10s_days: Annotated[
        int, Meta(ge=0, description="Rollups of 10 s are kept so long, and as long as samples at least; 0: for ever.")
    ] = 3650
    retention_1min_days: Annotated[
        int, Meta(ge=0, description="Rollups of 1 min, and as long as those of 10 s at least; 0: for ever.")
    ] = 0
    retention_1h_days: Annotated[
        int, Meta(ge=0, description="Rollups of 1 h, and as long as those of 1 min at least; 0: for ever.")
    ] = 0
    retention_states_days: Annotated[
        int, Meta(ge=0, description="State intervals, and as long as rollups of 10 s at least; 0: for ever.")
    ] = 0
    retention_events_days: Annotated[int, Meta(ge=0, description="Events; 0: for ever.")] = 3650
    retention_dead_letters_days: Annotated[
        int, Meta(ge=0, description="Dead letters are kept so long, their totals for ever; 0: for ever.")
    ] = 365
    machines_max: Annotated[
        int, Meta(ge=0, description="Samples of machines beyond so many are dead letters; 0: any number.")
    ] = 50_000
    machines_per_edge_max: Annotated[
        int, Meta(ge=0, description="The same for the machines of one edge; 0: any number.")
    ] = 3_000
    compress_after_days: Annotated[
        int,
        Meta(ge=0, description="Older chunks are compressed, where TimescaleDB's licence has it; 0: none."),
    ] = 7
    rollup_interval_ms: Annotated[
        int, Meta(ge=100, description="Time between two rounds of computing rollups and states.")
    ] = 2000
    rollup_share: Annotated[
        float,
        Meta(ge=0, le=1, description="Part of its time that computing rollups may take while more waits; 0: it waits."),
    ] = 0.7
    stale_after_ms: Annotated[
        int,
        Meta(
            ge=1000,
            description="There is no data of a machine so long after its last sample; "
            "later where they are further apart.",
        ),
    ] = 15_000
    status_ttl_s: Annotated[int, Meta(ge=10, description="An edge's heartbeat is forgotten after this.")] = (
        7 * 24 * 3600
    )
    leader_interval_ms: Annotated[int, Meta(ge=10, description="Time between two watermark rounds.")] = 200
    sweep_interval_ms: Annotated[int, Meta(ge=100, description="Time between two rounds of stream care.")] = 5000
    edges_interval_ms: Annotated[int, Meta(ge=50, description="Time between two writes of the edges' heartbeats.")] = (
        2000
    )
    abandon_grace_s: Annotated[
        float, Meta(ge=0, description="An epoch is abandoned when its edge's heartbeats have lacked it for so long.")
    ] = 900.0
    adopt_database: Annotated[
        bool,
        Meta(
            description="Lead from any database that the URL leads to, without `cncmon db adopt`: only where no other "
            "can have the same NATS, as in `cncmon up`."
        ),
    ] = False
    bootstrap_timeout_ms: Annotated[int, Meta(ge=0, description="How long bootstrap waits for both servers.")] = 60_000
    hold_retry_ms_max: Annotated[int, Meta(ge=100, description="Longest wait between tries during an outage.")] = 5000
