"""Settings of the agent (`CNCMON_AGENT_…`)."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cncmon_core.machine import Name


class AgentSettings(Struct, frozen=True):
    """Who this agent is, what it reads, and the bounds of what it keeps."""

    site: Annotated[Name, Meta(description="The plant; part of the subject.")] = "default"
    edge: Annotated[Name, Meta(description="This agent; part of the subject.")] = "edge"
    machines: Annotated[
        tuple[str, ...],
        Meta(description="YAML files or folders of Machine documents; those of this site and edge are read."),
    ] = ()
    data_dir: Annotated[str, Meta(description="Folder for what must survive a restart.")] = "./data/agent"
    accepted_log: Annotated[
        str, Meta(description="File that records every accepted batch, for proofs; empty: no record.")
    ] = ""
    linger_ms: Annotated[int, Meta(ge=1, le=10_000, description="A batch is cut this long after its first sample.")] = (
        100
    )
    linger_offline_ms: Annotated[
        int, Meta(ge=1, le=60_000, description="The same while there is no connection: fewer, larger batches.")
    ] = 2000
    batch_frames_max: Annotated[int, Meta(ge=1, le=10_000, description="Samples in a batch at most.")] = 500
    batch_bytes_max: Annotated[
        int, Meta(ge=1024, le=512 << 10, description="Bytes of a batch before compression, at most.")
    ] = 256 << 10
    hot_bytes_max: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 30,
            description="Memory for batches, a power of two or rounded down: what is not synced, or all without a disk.",
        ),
    ] = 2 << 20
    spool: Annotated[
        Literal["required", "preferred", "off"],
        Meta(description="Disk for batches: `required` refuses to start without, `preferred` goes on in memory."),
    ] = "required"
    spool_bytes_max: Annotated[
        int, Meta(ge=16 << 20, description="Disk for batches; then the oldest are dropped and declared as gaps.")
    ] = 2 << 30
    spool_free_bytes_min: Annotated[
        int, Meta(ge=0, description="What is always left free on that disk, for others.")
    ] = 256 << 20
    cold_dir: Annotated[
        str, Meta(description="Folder on another disk for what is older and compressed harder; empty: beside the rest.")
    ] = ""
    cold_bytes_max: Annotated[int, Meta(ge=16 << 20, description="Disk for batches in `cold_dir`.")] = 8 << 30
    sync_interval_ms: Annotated[
        int,
        Meta(ge=10, le=60_000, description="Time between two syncs: what a power cut may take. Longer writes less."),
    ] = 500
    horizon_h: Annotated[
        float,
        Meta(gt=0, le=8760, description="Outage to be survived: with less in sight, data is compressed harder."),
    ] = 24.0
    cpu_share_budget: Annotated[
        float, Meta(gt=0, le=64, description="Processor cores to be used in the long run, compressing included.")
    ] = 0.5
    replay_bytes_per_s_max: Annotated[
        int, Meta(ge=4096, description="Backlog sent at most, bytes a second; what the server takes is learned.")
    ] = 16 << 20
    compression_level: Annotated[int, Meta(ge=1, le=19, description="zstd level of live batches.")] = 1
    in_flight_max: Annotated[
        int, Meta(ge=1, le=4000, description="Batches published and not acknowledged, at most.")
    ] = 64
    ack_timeout_ms: Annotated[int, Meta(ge=100, description="Published again when not acknowledged for so long.")] = (
        5000
    )
    refused_retry_ms: Annotated[
        int, Meta(ge=100, description="Pause after NATS refused a batch (no stream, stream full).")
    ] = 1000
    duplicate_window_s: Annotated[
        int, Meta(ge=1, description="The stream's duplicate window: nothing lost is sent again within it.")
    ] = 120
    watermark_poll_ms: Annotated[
        int, Meta(ge=100, description="The watermark is asked for this often, beside being told.")
    ] = 5000
    config_poll_ms: Annotated[
        int, Meta(ge=100, description="The configuration is asked for this often, beside being told.")
    ] = 10_000
    clock_trusted: Annotated[
        Literal["auto", "always"],
        Meta(description="`auto`: samples wait for evidence that the clock is right; `always`: it is believed."),
    ] = "auto"
    clock_wait_s_max: Annotated[
        float, Meta(ge=0, description="So long, while online, before samples are stamped all the same, and flagged.")
    ] = 600.0
    heartbeat_ms: Annotated[int, Meta(ge=100, description="Time between two heartbeats.")] = 5000
    state_save_ms: Annotated[int, Meta(ge=100, description="Time between two writes of the epochs file.")] = 60_000
    offline_after_failures: Annotated[
        int, Meta(ge=1, description="Polls that must fail in a row before a machine is offline.")
    ] = 3
    offline_report_ms: Annotated[int, Meta(ge=100, description="An offline machine is reported this often.")] = 5000
    retry_delay_ms_max: Annotated[
        int, Meta(ge=100, description="Longest wait between tries of an offline machine.")
    ] = 10_000
    drain_s_max: Annotated[
        float, Meta(ge=0, le=9, description="At a stop, how long to wait for what is not delivered.")
    ] = 6.0
