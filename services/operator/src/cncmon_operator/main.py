"""`cncmon-operator run` looks after the Machines of one namespace; `release` lets go of them, before it is removed."""

import argparse
import asyncio
import logging
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import Final

import httpx2
from lightkube.core.exceptions import ConfigError

from cncmon_core import __version__, logs, nats_link, service, settings
from cncmon_core.errors import CncmonError
from cncmon_core.monitor import Health
from cncmon_operator import resources, tracing
from cncmon_operator.errors import OperatorError
from cncmon_operator.kube import NOT_FOUND, Kube, own_namespace
from cncmon_operator.leader import Leadership
from cncmon_operator.operator import Operator, for_ever
from cncmon_operator.settings import OperatorSettings
from cncmon_operator.watching import Watcher

log = logs.get(__name__)

WATCH_BEGINS_S: Final = 2.0
"""By when kopf has begun to watch."""


async def run(health: Health, stop: asyncio.Event) -> None:
    """Look after the resources until told to stop."""
    # A line a request and a line an event are no news; their warnings are.
    for library in ("httpx2", "kopf"):
        logging.getLogger(library).setLevel(logging.WARNING)
    ours = settings.load(OperatorSettings, "OPERATOR")
    link = nats_link.NatsLink(settings.load(nats_link.NatsSettings, "NATS"), "cncmon-operator")
    kube = _kube(ours)
    operator = Operator(kube, ours)
    watcher = Watcher(kube.namespace, operator.seen)
    leadership = Leadership(kube, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", ours.lease_s, operator.lead)
    health.ready_when("nats", link.check)
    health.ready_when("resources", lambda: operator.trouble)

    def not_listed(error: Exception) -> None:
        operator.trouble = _why(error)
        log.warning("the resources can't be listed", error=operator.trouble)

    async def list_and_watch() -> None:
        await operator.listed()
        # Not before: without the definitions kopf would wait for them in its own way.
        if not watcher.alive:
            watcher.start()
            # What went between this list and kopf's own first look, nobody would tell of until the next list.
            await asyncio.sleep(WATCH_BEGINS_S)
            await operator.listed()

    flush = tracing.start("cncmon-operator", __version__)
    log.info("looking after the resources", namespace=kube.namespace)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(for_ever(ours.resync_s, list_and_watch, not_listed)),
            group.create_task(leadership.run()),
            group.create_task(link.run(operator.connected)),
            *(group.create_task(operator.work()) for _ in range(ours.workers)),
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
    await watcher.stop()
    await kube.client.close()
    await asyncio.to_thread(flush)


async def release() -> int:
    """Take our finalizer from every Machine, so that they can be deleted while no operator runs. Returns how many."""
    kube = _kube(settings.load(OperatorSettings, "OPERATOR"))
    number = 0
    try:
        for machine in await kube.listed("Machine"):
            if resources.FINALIZER in machine.finalizers:
                number += await kube.let_go(machine)
    except httpx2.HTTPError as error:
        # Without the definitions there is nothing to let go of.
        if not _unknown(error):
            raise OperatorError(_why(error)) from error
    finally:
        await kube.client.close()
    return number


def _kube(ours: OperatorSettings) -> Kube:
    try:
        return Kube(ours.namespace or own_namespace())
    except ConfigError as error:
        text = f"no Kubernetes to be found: neither in a pod nor by KUBECONFIG or ~/.kube/config ({error})"
        raise OperatorError(text) from error


def _unknown(error: Exception) -> bool:
    """Whether the API server does not know our resources at all."""
    return isinstance(error, httpx2.HTTPStatusError) and error.response.status_code == NOT_FOUND


def _why(error: Exception) -> str:
    if _unknown(error):
        return "the API server does not know our resources: apply their definitions (charts/cnc-monitor/files/crds)"
    return f"the API server: {str(error) or type(error).__name__}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return the exit status."""
    parser = argparse.ArgumentParser(prog="cncmon-operator", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=["run", "release"])
    command = parser.parse_args(arguments).command
    try:
        if command == "run":
            return service.run("cncmon-operator", run)
        print(f"{asyncio.run(release())} machines let go")
    except CncmonError as error:
        print(f"cncmon-operator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
