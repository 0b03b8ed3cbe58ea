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
    fetch_messages: Annotated[int, Meta(ge=1, le=5000, description="Most messages in one transaction.")] = 200
    fetch_bytes: Annotated[int, Meta(ge=1 << 20, description="Most bytes asked of the stream at once.")] = 8 << 20
    workers_max: Annotated[
        int, Meta(ge=1, description="Most workers side by side; max_ack_pending is 4 × this × fetch_messages.")
    ] = 16
    ack_wait_ms: Annotated[int, Meta(ge=1000, description="Redelivered when not acknowledged for so long.")] = 30_000
    max_deliver: Annotated[int, Meta(ge=1, description="Deliveries of one message at most.")] = 3
    stream_bytes_max: Annotated[int, Meta(ge=1 << 20, description="max_bytes of CNC_DATA.")] = 2 << 30
    stream_messages_max: Annotated[int, Meta(ge=1000, description="max_msgs of CNC_DATA.")] = 1_000_000
    stream_age_s_max: Annotated[int, Meta(ge=60, description="max_age of CNC_DATA.")] = 24 * 3600
    stream_replicas: Annotated[int, Meta(ge=1, le=5, description="Replicas of streams and buckets.")] = 1
    duplicate_window_s: Annotated[int, Meta(ge=1, description="JetStream's own duplicate window.")] = 120
    future_s_max: Annotated[int, Meta(ge=0, description="Samples further ahead than this are dead letters.")] = 300
    retention_days: Annotated[
        int, Meta(ge=0, description="Samples older than this are dead letters (too_old); 0 keeps every age.")
    ] = 3650
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
    bootstrap_timeout_ms: Annotated[int, Meta(ge=0, description="How long bootstrap waits for both servers.")] = 60_000
    hold_retry_ms_max: Annotated[int, Meta(ge=100, description="Longest wait between tries during an outage.")] = 5000
