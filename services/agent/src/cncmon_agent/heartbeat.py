"""The heartbeat: what the cloud side can know of this edge, in KV `edge_status`."""

import time
import uuid
from datetime import datetime

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from prometheus_client import Gauge

from cncmon_agent.buffer import Buffer
from cncmon_agent.poller import MachineReport
from cncmon_core import __version__

BUFFER_BATCHES = Gauge("cncmon_edge_buffer_batches", "Batches in the buffer.")
BUFFER_SAMPLES = Gauge("cncmon_edge_buffer_samples", "Samples in the buffer.")
BUFFER_BYTES = Gauge("cncmon_edge_buffer_bytes", "Bytes in the buffer.")
BUFFER_CAPACITY = Gauge("cncmon_edge_buffer_capacity_bytes", "Bytes that the buffer may take.")
BUFFER_OLDEST = Gauge("cncmon_edge_buffer_oldest_seconds", "Age of the oldest batch in the buffer.")
MACHINES = Gauge("cncmon_edge_machines", "Machines by state.", ["state"])

BOOT_ID = str(uuid.uuid4())
"""Tells two agents under one name apart (a cloned SD card)."""


class BufferReport(msgspec.Struct):
    """How full the buffer is."""

    batches: int
    samples: int
    bytes: int
    capacity_bytes: int
    oldest_age_s: float
    unacked_batches: int


class EpochReport(msgspec.Struct):
    """One epoch on this edge. acked and freed as in the epochs file."""

    epoch: int
    acked_seq: int
    freed_seq: int
    acked_samples: int


class Heartbeat(msgspec.Struct):
    """One heartbeat."""

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
    stream_error: str | None
    machines: list[MachineReport]
    problems: list[str]


def buffer_report(buffer: Buffer, unacked: int) -> BufferReport:
    """Return the buffer's figures and set them as metrics."""
    stats = buffer.stats()
    age_s = 0.0 if stats.oldest_created_s is None else time.monotonic() - stats.oldest_created_s
    BUFFER_BATCHES.set(stats.batches)
    BUFFER_SAMPLES.set(stats.samples)
    BUFFER_BYTES.set(stats.bytes)
    BUFFER_CAPACITY.set(stats.capacity_bytes)
    BUFFER_OLDEST.set(age_s)
    return BufferReport(stats.batches, stats.samples, stats.bytes, stats.capacity_bytes, round(age_s, 3), unacked)


async def send(client: Client, key: str, bucket: str, heartbeat: Heartbeat) -> str | None:
    """Put a heartbeat; return why it could not be, or None. A missing bucket is no reason to end a session."""
    try:
        await client.jetstream(timeout=5).publish(f"$KV.{bucket}.{key}", msgspec.json.encode(heartbeat))
    except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return None


VERSION = __version__
