"""The heartbeat: what the cloud side can know of this edge, in KV `edge_status`."""

from datetime import datetime

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from prometheus_client import Gauge

from cncmon_agent.config.report import ConfigReport
from cncmon_agent.control import Decision
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import Epoch
from cncmon_agent.poller import MachineReport
from cncmon_agent.storage import Storage
from cncmon_core import __version__

OLDEST = Gauge("cncmon_edge_buffer_oldest_seconds", "Age of the oldest batch in the buffer.")
MACHINES = Gauge("cncmon_edge_machines", "Machines by state.", ["state"])


class BufferReport(msgspec.Struct):
    """How full the buffer is. hours_left: outage that can still be taken; None: no limit in sight."""

    batches: int
    samples: int
    bytes: int
    capacity_bytes: int
    oldest_age_s: float
    unacked_batches: int
    hours_left: float | None
    memory_only: bool
    hot_bytes: int
    warm_bytes: int
    cold_bytes: int
    dropped_samples: int
    quarantined_records: int


class EpochReport(msgspec.Struct):
    """One epoch on this edge; fields as in the epochs file. accepted_samples: up to last_seq; None: unknown."""

    epoch: int
    first_seq: int
    last_seq: int
    freed_seq: int
    acked_seq: int
    accepted_samples: int | None


class ClockReport(msgspec.Struct):
    """known: whether wall time is known to be right. waiting_samples: those that wait for it. steps: those seen."""

    known: bool
    waiting_samples: int
    steps: int


class Heartbeat(msgspec.Struct):
    """One heartbeat. boot_id: tells two agents under one name apart (a cloned SD card); beat, nonce: as of a `Mark`.

    gone: epochs that the heartbeat before this process told of, and that are not here any more. forked: epochs here
    under which another agent publishes, too.
    """

    version: str
    boot_id: str
    site: str
    edge: str
    epoch: int
    epochs: list[EpochReport]
    time: datetime
    uptime_s: float
    buffer: BufferReport
    samples_accepted: int
    samples_refused: int
    stream_error: str | None
    machines: list[MachineReport]
    config: ConfigReport
    clock: ClockReport
    problems: list[str]
    gone: list[EpochReport] = []
    beat: int = 0
    nonce: str = ""
    forked: list[int] = []


def epoch_report(delivery: Delivery, accepted_samples: int | None = None) -> EpochReport:
    """Return what is to be said of an epoch.

    accepted_samples: of the current one, that the batcher has counted; its last batch counts from when it is accepted,
    synced or not. It may be delivered and gone by now: nothing that is held tells of it then.
    """
    epoch, (first, end) = delivery.epoch, delivery.buffer.range()
    last_seq, samples = epoch.last_seq, epoch.counted
    if accepted_samples is not None:
        last_seq, samples = end - 1, accepted_samples
    return EpochReport(epoch.epoch, first, last_seq, epoch.freed_seq, epoch.acked_seq, samples)


def unread_report(epoch: Epoch) -> EpochReport:
    """Return what is to be said of an earlier epoch whose log is not read yet, or can't be: what the file knows of it.

    An epoch that no heartbeat lists any more counts as abandoned.
    """
    return EpochReport(
        epoch.epoch, epoch.freed_seq + 1, epoch.last_seq, epoch.freed_seq, epoch.acked_seq, epoch.counted
    )


def buffer_report(storage: Storage, deliveries: Deliveries, decision: Decision | None, now: datetime) -> BufferReport:
    """Return the buffer's figures."""
    held = storage.held()
    age_s = 0.0 if held.oldest_created_ms is None else max(0.0, now.timestamp() - held.oldest_created_ms / 1000)
    OLDEST.set(age_s)
    return BufferReport(
        batches=held.batches,
        samples=held.samples,
        bytes=held.bytes,
        capacity_bytes=held.capacity_warm_bytes + held.capacity_cold_bytes,
        oldest_age_s=round(age_s, 3),
        unacked_batches=deliveries.unacknowledged(),
        hours_left=None if decision is None or decision.hours_left is None else round(decision.hours_left, 2),
        memory_only=storage.memory_only is not None,
        hot_bytes=held.hot_bytes,
        warm_bytes=held.warm_bytes,
        cold_bytes=held.cold_bytes,
        dropped_samples=held.dropped_samples,
        quarantined_records=held.quarantined_records,
    )


async def send(client: Client, key: str, bucket: str, heartbeat: Heartbeat) -> str | None:
    """Put a heartbeat; return why it could not be, or None. A missing bucket is no reason to end a session."""
    try:
        await client.jetstream(timeout=5).publish(f"$KV.{bucket}.{key}", msgspec.json.encode(heartbeat))
    except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return None


VERSION = __version__
