"""The edges' documents as the commands use them: with errors that say what to do."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from cncmon_core import edge_config
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.edge_documents import EdgeDocuments, Stored
from cncmon_core.errors import EdgeConfigError, EdgeDocumentError
from cncmon_standalone import backlog
from cncmon_standalone.configure.change import EdgeChange
from cncmon_standalone.errors import PartError, UnusableError


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """Yield a client.

    Raises:
        PartError: NATS, or the bucket, is not to be had; of what goes wrong inside as well.
    """
    try:
        client = await backlog.connect(url)
        try:
            yield client
        finally:
            await client.close()
    except EdgeDocumentError as error:
        raise PartError(str(error)) from error
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError) as error:
        said = str(error) or type(error).__name__
        raise PartError(f"NATS at {url} can't be asked for the machines' configuration: {said}") from error


async def change(
    documents: EdgeDocuments, site: str, edge: str, to: Callable[[Stored], EdgeChange], *, dry_run: bool
) -> EdgeChange:
    """Change an edge's document by `to`, again with what is there then where somebody else was quicker.

    Raises:
        UnusableError: the new document is none that an edge would take.
    """
    made: list[EdgeChange] = []

    def wanted(stored: Stored) -> EdgeConfig | None:
        made[:] = [to(stored)]
        if dry_run and made[0].changes:
            edge_config.decode(edge_config.encode(made[0].wanted), site, edge)
        return made[0].wanted if made[0].changes and not dry_run else None

    try:
        await documents.write(site, edge, wanted)
    except EdgeConfigError as error:
        raise UnusableError(f"the configuration of {site}/{edge} would not be usable: {error}") from error
    return made[0]
