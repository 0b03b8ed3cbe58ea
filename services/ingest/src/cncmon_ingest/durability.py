"""Settings of the server on which "committed" means less than "cannot be lost", and what to do about each.

`synchronous_commit` is refused: it is a session's setting, and nobody needs another for this program. `fsync` and
`full_page_writes` are the server's own: a worker goes on, warns, and says so in a metric, since a test or a server on
storage that never tears pages (ZFS) may have them off on purpose. `cncmon db check` takes all three for errors.
"""

from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_ingest import metrics

log = logs.get(__name__)

SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_commit")
DURABLE_COMMITS: Final = ("on", "remote_apply")
"""Values of synchronous_commit with which an acknowledged commit is on disk, here and on a synchronous standby."""

_ADVICE: Final = {
    "fsync": "set fsync = on: a power cut can lose acknowledged samples and corrupt the whole database",
    "full_page_writes": (
        "set full_page_writes = on: a power cut can corrupt pages, and with them what was acknowledged long before "
        "(off is safe only on a file system that never tears pages, such as ZFS)"
    ),
    "synchronous_commit": "set synchronous_commit = on: a crash can take back what was acknowledged last",
}

_warned: set[str] = set()


async def values(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the settings that durability rests on.

    Raises:
        asyncpg.PostgresError
    """
    rows = await connection.fetch("SELECT name, current_setting(name) FROM unnest($1::text[]) AS name", SETTINGS)
    return {str(row["name"]): str(row["current_setting"]) for row in rows}


def advice(found: dict[str, str]) -> dict[str, str]:
    """Return for each setting that is not safe what to do and why."""
    return {
        name: _ADVICE[name]
        for name, value in found.items()
        if value not in (DURABLE_COMMITS if name == "synchronous_commit" else ("on",))
    }


def warn(found: dict[str, str]) -> None:
    """Log what is not safe, once each time that it becomes so, and set the metric."""
    todo = advice(found)
    for name in found:
        metrics.UNSAFE_SETTINGS.labels(name).set(name in todo)
        if name in todo and name not in _warned:
            log.warning(
                "the database can lose what it has acknowledged", setting=f"{name} = {found[name]}", todo=todo[name]
            )
    _warned.clear()
    _warned.update(todo)
