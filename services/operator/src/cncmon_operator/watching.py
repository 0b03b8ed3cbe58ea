"""Watches the API server with kopf, in a thread of its own: kopf takes a loop's signals for itself.

kopf only watches: it has no handlers that would have it write finalizers or annotations. What it may miss, a stream
that falls silent or an event that is lost, is repaired by the operator's own lists.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

import kopf

from cncmon_core import logs
from cncmon_operator.kube import CHUNK, GROUP, PLURALS, VERSION

log = logs.get(__name__)

SILENT_S: Final = 300
"""A watch is begun anew after this long."""

STOP_S: Final = 5.0

Seen = Callable[[str, bool, dict[str, Any]], None]
"""Called with a kind, whether the object is gone, and the object."""


class Watcher:
    """Calls `seen` in the loop that made it."""

    def __init__(self, namespace: str, seen: Seen) -> None:
        self._namespace = namespace
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, or begin anew where the thread has ended."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="kopf", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it watches."""
        return self._thread is not None and self._thread.is_alive()

    async def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_S)

    def _run(self, stop: threading.Event) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=self._registry(),
                    settings=_settings(),
                    namespaces=[self._namespace],
                    standalone=True,
                    stop_flag=stop,
                )
            )
        except Exception as error:  # begun anew by the operator
            log.error("watching ended", error=str(error) or type(error).__name__)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**kwargs: Any) -> Any:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        kopf.on.login(registry=registry)(login)
        for kind, plural in PLURALS.items():
            kopf.on.event(GROUP, VERSION, plural, registry=registry, id=plural)(self._handler(kind))
        return registry

    def _handler(self, kind: str) -> Any:
        async def handle(event: Any, **_: Any) -> None:
            gone = event["type"] == "DELETED"
            # The loop is closed where the operator ended first.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._seen, kind, gone, {**event["object"], "kind": kind})

        return handle


class _NoDiff(kopf.DiffBaseStorage):
    """Keeps nothing: for handlers that no change calls, kopf would copy every object several times to find changes."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiff()
    settings.watching.chunk_size = CHUNK
    # One namespace, known kinds: it has no right to list what the whole cluster has, and would try for minutes.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = SILENT_S
    settings.watching.client_timeout = SILENT_S + 10
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.queueing.exit_timeout = 1
    return settings
