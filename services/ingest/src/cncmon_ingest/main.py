"""`cncmon-ingest run` is a worker (any number side by side); `bootstrap` prepares database and streams."""

import cncmon_core.lean  # noqa: F401, I001 before anything that could take its libraries along

import argparse
import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine

import nats.errors
from nats.aio.client import Client

from cncmon_core import logs, nats_link, service, settings
from cncmon_core.backoff import Backoff
from cncmon_core.errors import CncmonError
from cncmon_core.monitor import Health
from cncmon_ingest import bootstrap, fast
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import DATABASE_ERRORS, MigrationError, OutageError, translate
from cncmon_ingest.leader import Leader
from cncmon_ingest.maintenance import Maintainer
from cncmon_ingest.migrate import migrate, schema
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.worker import Worker

log = logs.get(__name__)

GARBAGE_OBJECTS = 50_000
"""So many more objects made than freed before the collector looks for cycles. A portion in hand is thousands of them
and has none: at Python's own 700 the looking is 3 to 6 % of a worker's time.
"""


async def run_worker(health: Health, stop: asyncio.Event) -> None:
    """Wait for the schema, then work and, when it is this worker's turn, lead."""
    ours = settings.load(IngestSettings, "INGEST")
    gc.set_threshold(GARBAGE_OBJECTS)
    log.info("rows are packed natively" if fast.NATIVE else "rows are packed in Python: the extension was not built")
    link = nats_link.NatsLink(settings.load(nats_link.NatsSettings, "NATS"), "cncmon-ingest")
    worker, leader = Worker(ours, stop), Leader(ours)
    health.ready_when("nats", link.check)
    health.ready_when("database", worker.check)

    async def session(client: Client) -> None:
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(leader.session(client))
            await worker.session(client)
            leading.cancel()

    async def work() -> None:
        await _wait_for_schema(ours, worker)
        # Whatever becomes of NATS: what is stored can be kept in order.
        maintaining = asyncio.create_task(Maintainer(ours).run())
        try:
            await link.run(session)
        finally:
            maintaining.cancel()
            await asyncio.wait([maintaining])

    await _until(stop, work(), grace_s=lambda: 5 if link.client is not None else 0)


async def _until(
    stop: asyncio.Event, work: Coroutine[None, None, None], grace_s: Callable[[], float] = lambda: 0
) -> None:
    """Run work to its end; once told to stop, give it some time to end by itself, then cancel it."""
    running = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({running}, timeout=grace_s())
    finally:
        running.cancel()
        stopping.cancel()
        results = await asyncio.gather(running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _wait_for_schema(ours: IngestSettings, worker: Worker) -> None:
    """Return once the database has a schema that this version can work on: workers never bring it there.

    Readiness says meanwhile what is missing.
    """
    backoff = Backoff(0.2, ours.hold_retry_ms_max / 1000)
    while True:
        try:
            connection = await connect(ours.database_dsn)
            try:
                said = (await schema(connection)).problem()
            finally:
                await connection.close(timeout=5)
            if said is None:
                return
        except OutageError as error:
            said = str(error)
        except DATABASE_ERRORS as error:
            said = str(translate(error))
        worker.waits_for(said)
        log.warning("waiting for the database", reason=said)
        await asyncio.sleep(backoff.next_s())


async def run_bootstrap(_health: Health, stop: asyncio.Event) -> None:
    """Migrate the database and make stream, consumer and buckets, waiting for both servers for a bounded time."""
    ours = settings.load(IngestSettings, "INGEST")
    link = nats_link.NatsLink(settings.load(nats_link.NatsSettings, "NATS"), "cncmon-bootstrap")

    async def session(client: Client) -> None:
        await bootstrap.ensure(client, ours)

    waiting = _Waiting()
    try:
        async with asyncio.timeout(ours.bootstrap_timeout_ms / 1000):
            await _until(stop, _prepare(ours, link, session, waiting))
    except TimeoutError as error:
        missing = f"database: {waiting.reason}" if waiting.reason else f"NATS: {link.check()}"
        raise CncmonError(f"gave up after {ours.bootstrap_timeout_ms} ms. {missing}") from error


class _Waiting:
    """What the bootstrap waits for; None: not for the database."""

    reason: str | None = "not asked yet"


async def _prepare(
    ours: IngestSettings, link: nats_link.NatsLink, session: nats_link.Session, waiting: _Waiting
) -> None:
    await _migrate(ours, waiting)
    await link.run(session)


async def _migrate(ours: IngestSettings, waiting: _Waiting) -> None:
    backoff = Backoff(0.1, 1)
    while True:
        try:
            # What is large takes long.
            connection = await connect(ours.database_dsn, None)
            try:
                waiting.reason = "the migration has not ended"
                await migrate(connection)
            finally:
                await connection.close(timeout=5)
        except OutageError as error:
            waiting.reason = str(error)
        except DATABASE_ERRORS as error:
            # Rights and room can be given while it waits.
            waiting.reason = str(translate(error))
        else:
            waiting.reason = None
            return
        log.warning("waiting for the database", reason=waiting.reason)
        await asyncio.sleep(backoff.next_s())


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="cncmon-ingest", description=__doc__)
    parser.add_argument("command", choices=["run", "bootstrap"])
    command = parser.parse_args().command
    try:
        sys.exit(
            service.run("ingest", run_worker if command == "run" else run_bootstrap, serve_monitor=command == "run")
        )
    except (CncmonError, MigrationError, nats.errors.Error, *DATABASE_ERRORS) as error:
        sys.exit(f"cncmon-ingest {command}: {error}")


if __name__ == "__main__":
    main()
