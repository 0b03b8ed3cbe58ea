"""Gives the machines of `up` and `demo` to their agents, as soon as there is a bucket to put them into."""

from collections.abc import Mapping

from cncmon_core.machine import Machine
from cncmon_standalone.configure import apply, documents
from cncmon_standalone.console import Progress


async def configure(nats_url: str, machines: Mapping[str, Machine], progress: Progress) -> None:
    """Make these machines all that their edges read. Within this process: importing another Python costs more.

    Raises:
        StandaloneError: it can't be done; says why.
    """
    async with documents.connected(nats_url) as client:
        changes = await apply.apply(client, machines, prune=True)
    for change in changes:
        for machine in change.machines:
            if machine.verb in ("removed", "moved"):
                progress.warn(f"{change.site}/{change.edge} {machine.machine} {machine.verb}: not in these files")
