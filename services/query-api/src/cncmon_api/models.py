"""What the API sends: one struct an answer. The bytes and the OpenAPI schemas are both made from these."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from cncmon_core import states
from cncmon_core.sample import MachineState

Utc = Annotated[datetime, Meta(tz=True, description="RFC 3339, UTC, up to µs.")]
State = Annotated[MachineState | None, Meta(description="null: a word that the data model doesn't know.")]
Extra = str | float | bool | None


class Sample(Struct, gc=False):
    """What a machine did at one moment. The first twelve fields and `state` are always there, null: not available."""

    machine_id: str
    timestamp: Annotated[datetime, Meta(tz=True, description="When the controller answered, by the edge's clock.")]
    temperature: Annotated[float | None, Meta(description="°C")]
    spindle_speed: Annotated[float | None, Meta(description="rpm")]
    x_pos_mm: Annotated[float | None, Meta(description="mm")]
    y_pos_mm: Annotated[float | None, Meta(description="mm")]
    z_pos_mm: Annotated[float | None, Meta(description="mm")]
    feed_rate_actual: Annotated[float | None, Meta(description="mm/min")]
    spindle_load_percent: Annotated[float | None, Meta(description="% of rated load")]
    machine_state: State
    active_program_line: int | None
    total_power_kw: Annotated[float | None, Meta(description="kW")]
    state: Annotated[
        MachineState | None,
        Meta(
            description="What the machine was doing, by the rule of all states: an alarm code in `extras` counts, and "
            "movement where there is no `machine_state`. null: a word that the data model doesn't know."
        ),
    ]
    mode: str | UnsetType = UNSET
    program: str | UnsetType = UNSET
    part_count: int | UnsetType = UNSET
    tool_number: int | UnsetType = UNSET
    anomaly_score: float | UnsetType = UNSET
    extras: Annotated[dict[str, Any] | UnsetType, Meta(description="Further values, by name.")] = UNSET


class MachineInfo(Struct):
    """A machine and its present state."""

    id: str
    site: str
    edge: str
    state: Annotated[states.State | None, Meta(description="no_data where stale; null: a word the API doesn't know.")]
    state_since: Annotated[Utc | None, Meta(description="null: longer ago than was looked back, or not yet known.")]
    stale: Annotated[bool, Meta(description="The last sample is older than stale_after_ms, or there is none.")]


class Machine(MachineInfo):
    """A machine, its present state and its newest sample."""

    last_sample: Sample | None


class MachineInfos(Struct):
    """Data of the live event `machines`, sorted by id."""

    now: Utc
    machines: list[MachineInfo]


class MachineList(Struct):
    """Machines, sorted by id, and the API's clock to count ages from."""

    now: Utc
    machines: list[Machine]
    next_after: Annotated[str | None, Meta(description="Pass it as `after` for what follows; null: that was all.")]


class SamplePage(Struct):
    """Samples in ascending time."""

    samples: list[Sample]
    next_cursor: Annotated[str | None, Meta(description="Pass it as `cursor` for what follows; null: that was all.")]


class Band(Struct):
    """One field over all buckets; null: nothing was measured in that bucket."""

    min: list[float | None]
    mean: list[float | None]
    max: list[float | None]


class Series(Struct):
    """Buckets of equal width over a range. A bucket without samples is there, with nulls."""

    from_: Utc = msgspec.field(name="from")
    to: Utc
    bucket_ms: Annotated[int, Meta(ge=1, description="Width of a bucket in ms.")]
    source: Annotated[str, Meta(description="What was read: samples, or the rollup 10s, 1min or 1h.")]
    complete: Annotated[bool, Meta(description="false: some of the range waits to be computed; ask again later.")]
    times: Annotated[list[int], Meta(description="Beginning of each bucket, ms since 1970.")]
    fields: dict[str, Band]
    states: Annotated[list[MachineState | None], Meta(description="The last state within each bucket; never no_data.")]


Cause = Literal["edge_silent", "late", "unknown", "undivided"]


class StateInterval(Struct):
    """A machine was in one state, with one program and alarm, over [from, to)."""

    from_: Utc = msgspec.field(name="from")
    to: Utc
    state: states.State
    program: str | None
    alarm: str | None
    cause: Annotated[
        Cause | None,
        Meta(
            description="Why there is no_data: edge_silent (its edge sent no heartbeats), late (its edge has samples "
            "that are not stored yet) or unknown. undivided: an offline that was computed before there was no_data, "
            "and may be either."
        ),
    ] = None


class StateIntervals(Struct):
    """What a machine was doing over a range, in order and without holes from its first sample on."""

    from_: Utc = msgspec.field(name="from")
    to: Utc
    intervals: list[StateInterval]
    next_from: Annotated[Utc | None, Meta(description="Pass it as `from` for what follows; null: that was all.")]


class LiveSamples(Struct):
    """Data of the live event `samples`."""

    now: Utc
    samples: list[Sample]


class LiveEdge(Struct):
    """An edge, as live tells of it. machines: how many it owns."""

    site: str
    edge: str
    silent_since: Annotated[
        Utc | None, Meta(description="Its last heartbeat, longer ago than edge_stale_after_ms; null: it is heard of.")
    ]
    machines: int


class LiveEdges(Struct):
    """Data of the live event `edges`, sorted by site and name."""

    now: Utc
    edges: list[LiveEdge]


class LiveAlive(Struct):
    """Data of the live event `alive`: there is nothing else to tell."""

    now: Utc


class LiveStatus(Struct):
    """Data of the live event `status`."""

    database: Annotated[str, Meta(pattern="^(ok|unavailable)$")]
    message: Annotated[str, Meta(description="What is wrong and what to do; empty when ok.")]


class DatabaseStatus(Struct):
    """Whether the database answers."""

    ok: bool
    message: Annotated[str, Meta(description="What is wrong and what to do; empty when ok.")]


class Status(Struct):
    """How the API itself is."""

    version: str
    database: DatabaseStatus
    machines: Annotated[int, Meta(description="Machines known.")]
    live_clients: Annotated[int, Meta(description="Open live streams.")]


class EdgeBuffer(Struct):
    """What waits on an edge. null: its agent does not say."""

    batches: int | None = None
    samples: int | None = None
    bytes: int | None = None
    capacity_bytes: int | None = None
    oldest_age_s: Annotated[float | None, Meta(description="Age of the oldest batch that waits.")] = None
    unacked_batches: Annotated[int | None, Meta(description="Not yet in the stream.")] = None
    hours_left: Annotated[
        float | None, Meta(description="Hours of outage that it can still take; null: no limit in sight.")
    ] = None
    memory_only: Annotated[bool | None, Meta(description="Its disk can't be used: a restart loses what waits.")] = None
    hot_bytes: Annotated[int | None, Meta(description="In memory.")] = None
    warm_bytes: Annotated[int | None, Meta(description="On disk.")] = None
    cold_bytes: Annotated[int | None, Meta(description="On disk, compressed harder.")] = None
    dropped_samples: Annotated[int | None, Meta(description="Dropped since its start: no room.")] = None
    quarantined_records: Annotated[int | None, Meta(description="Damaged on disk, put aside.")] = None


class EdgeConfigError(Struct):
    """Why an edge refuses a configuration."""

    machine: str | None = None
    path: str | None = None
    problem: str | None = None


class EdgeConfig(Struct):
    """The configuration that an edge runs, and what is wrong with the newest one."""

    revision: int | None = None
    sha256: str | None = None
    source: Annotated[str | None, Meta(description="kv, disk, files or none.")] = None
    errors: list[EdgeConfigError] = []


class EdgeClock(Struct):
    """Whether an edge knows the time."""

    known: bool | None = None
    steps: Annotated[int | None, Meta(description="Steps of its clock since its start.")] = None
    waiting_samples: Annotated[int | None, Meta(description="Samples that wait for the time to be known.")] = None


class EdgeMachines(Struct):
    """How many machines an edge reads, by the state of the connection."""

    connected: int = 0
    connecting: int = 0
    offline: int = 0


class Edge(Struct):
    """An edge agent, as its last heartbeat told. null: that heartbeat has no such part."""

    site: str
    edge: str
    boot_id: Annotated[str, Meta(description="Another one after each start.")]
    version: str | None
    time: Annotated[datetime, Meta(tz=True, description="Of the heartbeat, by the edge's clock.")]
    received: Annotated[datetime, Meta(tz=True, description="When the heartbeat arrived.")]
    stale: Annotated[bool, Meta(description="It arrived longer ago than edge_stale_after_ms.")]
    buffer: EdgeBuffer | None
    config: EdgeConfig | None
    clock: EdgeClock | None
    problems: Annotated[list[str], Meta(description="What the agent says is wrong, in sentences.")]
    machines: EdgeMachines


class EdgeList(Struct):
    """All edges, sorted by site and name, and the API's clock to count ages from."""

    now: Utc
    edges: list[Edge]


class Problem(Struct):
    """An error (RFC 9457)."""

    type: Annotated[str, Meta(description="about:blank: the status says it all.")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: Annotated[str, Meta(description="What is wrong and what is allowed or to be done.")]
    instance: Annotated[str, Meta(description="The path that was asked for.")]


ANSWERS: tuple[type[Struct], ...] = (
    MachineList,
    MachineInfos,
    SamplePage,
    Series,
    StateIntervals,
    LiveSamples,
    LiveStatus,
    LiveEdges,
    LiveAlive,
    Status,
    EdgeList,
    Problem,
)

encode = msgspec.json.Encoder().encode
