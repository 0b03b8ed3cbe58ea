"""Committing whatever the database makes of it: tried again where it lost, buried where it is refused (rule B7)."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from cncmon_core import logs
from cncmon_ingest import metrics
from cncmon_ingest.dead_letters import DETAIL_CHARS_MAX
from cncmon_ingest.decode import DeadLetter, Decoded, frames_of
from cncmon_ingest.errors import OutageError, RefusedError, RetryError
from cncmon_ingest.store import Outcome, Store

log = logs.get(__name__)

RETRIES_MAX: Final = 10
"""Lost against another worker so often in a row: treat it as an outage, with its waiting times."""

PORTION_BYTES_MAX: Final = 4 << 20
"""Decompressed payload in one transaction, some 10,000 samples and a tenth of a second: what comes behind it, live
samples beside a backlog of days, waits for it. Larger ones save less than 5 %.
"""


class Committed(msgspec.Struct):
    """What became of messages. database_time: the database's clock at the last of the transactions."""

    new: list[Decoded] = []
    known: list[Decoded] = []
    database_time: datetime | None = None


async def commit(store: Store, decoded: Sequence[Decoded]) -> Committed:
    """Commit all of it; what the database refuses is found and buried, the rest is committed.

    Raises:
        OutageError: some of it is not committed; trying all of it again is right, the ledger knows the rest.
    """
    done = Committed()
    parts: list[Sequence[Decoded]] = [decoded]
    while parts:
        part = parts.pop()
        try:
            outcome = await _write(store, part)
        except RefusedError as error:
            if len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            else:
                await _bury_refused(store, part[0], error)
                parts.append(part)
        else:
            done.new += outcome.new
            done.known += outcome.known
            done.database_time = outcome.database_time
            _count(outcome)
    return done


async def _write(store: Store, part: Sequence[Decoded]) -> Outcome:
    for _ in range(RETRIES_MAX):
        started = time.perf_counter()
        try:
            outcome = await store.write(part)
        except RetryError as error:
            metrics.RETRIES.inc()
            log.info("transaction tried again", reason=str(error))
            continue
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - started)
        return outcome
    raise OutageError(f"lost {RETRIES_MAX} times in a row against other transactions")


async def _bury_refused(store: Store, message: Decoded, error: RefusedError) -> None:
    """Move the rows that the database refuses to the dead letters; if it is none of them, the whole message."""
    if message.whole_dead:
        raise OutageError(f"the database refuses a dead letter: {error}")
    try:
        refused = await store.refused_frames(message) if message.packed else {}
    except RetryError as retry:
        raise OutageError(str(retry)) from retry
    if not refused:
        message.bury("refused_by_database", str(error))
        return
    originals = frames_of(message.incoming)
    for number, said in sorted(refused.items()):
        message.dead.append(DeadLetter(number, "refused_by_database", said, originals[number]))
    keep = [index for index, number in enumerate(message.frame_numbers) if number not in refused]
    message.packed = [message.packed[index] for index in keep]
    message.frame_numbers = [message.frame_numbers[index] for index in keep]


def _count(outcome: Outcome) -> None:
    samples = dead = 0
    for message in outcome.new:
        dead += message.whole_dead
        samples += len(message.packed)
    for message in (*outcome.new, *outcome.conflicts):
        if message.dead:
            _report_dead(message)
    for disposition, messages in (
        ("dead", dead),
        ("stored", len(outcome.new) - dead),
        ("known", len(outcome.known)),
    ):
        if messages:
            metrics.MESSAGES.labels(disposition).inc(messages)
    metrics.SAMPLES.inc(samples)
    metrics.COMMIT_SAMPLES.observe(samples)


def _report_dead(message: Decoded) -> None:
    """Count the dead frames of a message, and log one line for each reason however many they are."""
    for reason, frames in Counter(letter.reason for letter in message.dead).items():
        metrics.DEAD.labels(reason).inc(frames)
        detail = next(letter.detail for letter in message.dead if letter.reason == reason)[:DETAIL_CHARS_MAX]
        log.warning("dead letter", reason=reason, frames=frames, detail=detail, subject=message.incoming.subject)
