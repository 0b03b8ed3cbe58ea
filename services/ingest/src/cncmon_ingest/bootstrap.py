"""The one place where the stream, its consumer and the buckets are made and brought up to date."""

from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from cncmon_core import logs, names
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

ACK_PENDING_PER_WORKER = 4
"""Fetch sizes in flight a worker: fewer stall a drain (rule B8 of docs/delivery.md)."""

CONFIG_HISTORY = 8
"""Configurations of an edge kept, to go back to."""

BUCKET_DUPLICATES_S = 120
"""JetStream's own duplicate window of a bucket."""

SHARE = ("max_msgs_per_subject", "discard_new_per_subject")
"""Fields of the stream that are also changed where they are to be switched off."""


async def ensure(client: Client, settings: IngestSettings) -> None:
    """Make or update stream `CNC_DATA`, durable `PROCESSOR` and the KV buckets. Safe to run at any time, by anyone."""
    js = client.jetstream(timeout=10)
    await _ensure_stream(js, stream_config(settings))
    await _ensure_consumer(js, settings)
    for bucket, ttl_s, history in (
        (names.KV_STATUS, settings.status_ttl_s, 1),
        (names.KV_WATERMARK, 0, 1),
        (names.KV_CONFIG, 0, CONFIG_HISTORY),
    ):
        await _ensure_bucket(js, bucket, ttl_s, history, settings.stream_replicas)


def stream_config(settings: IngestSettings) -> api.StreamConfig:
    """Return what `CNC_DATA` should be: limits retention, and new messages refused rather than old ones lost."""
    return api.StreamConfig(
        name=names.STREAM,
        subjects=[names.SUBJECT_ALL, *settings.extra_subjects],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.NEW,
        max_age=settings.stream_age_s_max,
        max_bytes=settings.stream_bytes_max,
        max_msgs=settings.stream_messages_max,
        duplicate_window=settings.duplicate_window_s,
        num_replicas=settings.stream_replicas,
        allow_direct=True,
        # An edge that publishes faster than the database commits is refused before it takes everybody's room.
        max_msgs_per_subject=settings.stream_messages_per_edge_max or -1,
        discard_new_per_subject=settings.stream_messages_per_edge_max > 0,
    )


async def _ensure_stream(js: JetStreamContext, wanted: api.StreamConfig) -> None:
    try:
        found = (await js.stream_info(names.STREAM)).config
    except NotFoundError:
        await js.add_stream(wanted)
        log.info("stream made", stream=names.STREAM, subjects=wanted.subjects)
        return
    changed = _differences(wanted, found)
    changed += [name for name in SHARE if name not in changed and getattr(found, name) != getattr(wanted, name)]
    if changed:
        await js.update_stream(wanted)
        log.info("stream updated", stream=names.STREAM, changed=changed)


def _differences(wanted: Any, found: Any) -> list[str]:
    """Return the fields that we set and the server has otherwise."""
    names_set = [name for name, value in vars(wanted).items() if value not in (None, False, -1, 0, "", [])]
    return [name for name in names_set if getattr(found, name) != getattr(wanted, name)]


async def _ensure_consumer(js: JetStreamContext, settings: IngestSettings) -> None:
    wanted = api.ConsumerConfig(
        durable_name=names.DURABLE,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=settings.ack_wait_ms / 1000,
        # What is delivered often is tried alone (`suspects`); a limit here would leave it undelivered for ever.
        max_deliver=-1,
        max_ack_pending=ACK_PENDING_PER_WORKER * settings.workers_max * settings.fetch_messages,
        deliver_policy=api.DeliverPolicy.ALL,
    )
    try:
        info = await js.consumer_info(names.STREAM, names.DURABLE)
    except NotFoundError:
        info = None
    if info is not None:
        last_seq = (await js.stream_info(names.STREAM)).state.last_seq
        delivered = info.delivered.stream_seq if info.delivered else 0
        if delivered > last_seq:
            # The stream lost its tail, and a consumer that is ahead of it delivers nothing. What then comes twice, the
            # ledger drops.
            log.warning("consumer is ahead of its stream, making it again", delivered=delivered, last_seq=last_seq)
            await js.delete_consumer(names.STREAM, names.DURABLE)
        elif info.config and not _differences(wanted, info.config) and info.config.max_deliver == -1:
            return
    await js.add_consumer(names.STREAM, wanted)
    log.info("consumer made or updated", consumer=names.DURABLE)


async def _ensure_bucket(js: JetStreamContext, bucket: str, ttl_s: int, history: int, replicas: int) -> None:
    """Make a bucket, or bring what we set of an existing one up to date; its entries stay."""
    republish = api.RePublish(src=f"$KV.{bucket}.>", dest=f"cncmon.kv.{bucket}.>")
    wanted = {
        "max_age": float(ttl_s),
        "max_msgs_per_subject": history,
        "num_replicas": replicas,
        "allow_direct": True,
        # No longer than an entry lives, or the server refuses it; its default is 2 minutes.
        "duplicate_window": float(min(ttl_s or BUCKET_DUPLICATES_S, BUCKET_DUPLICATES_S)),
        "republish": republish,
    }
    try:
        found = (await js.stream_info(f"KV_{bucket}")).config
    except NotFoundError:
        await js.create_key_value(
            api.KeyValueConfig(
                bucket=bucket,
                history=history,
                ttl=ttl_s or None,
                storage=api.StorageType.FILE,
                replicas=replicas,
                direct=True,
                republish=republish,
            )
        )
        log.info("bucket made", bucket=bucket)
        return
    if changed := [name for name, value in wanted.items() if (getattr(found, name) or 0) != value]:
        await js.update_stream(found.evolve(**wanted))
        log.info("bucket updated", bucket=bucket, changed=changed)
