"""Edges that are to be looked at: each once however often it is named, and by one at a time."""

import asyncio
import time
from collections.abc import Iterable

from prometheus_client import Gauge

from cncmon_core.edge_documents import Edge

DUE = Gauge("cncmon_operator_queue", "Edges that wait to be looked at now.")


class EdgeQueue:
    """Not for use from several threads."""

    def __init__(self) -> None:
        self._due_s: dict[Edge, float] = {}
        self._busy: set[Edge] = set()
        self._changed = asyncio.Event()

    def add(self, edges: Iterable[Edge], after_s: float = 0.0) -> None:
        """Name edges, to be looked at in so many seconds at the latest."""
        due_s = time.monotonic() + after_s
        for edge in edges:
            if edge not in self._due_s or due_s < self._due_s[edge]:
                self._due_s[edge] = due_s
                self._changed.set()

    async def take(self) -> Edge:
        """Return the next edge, when one is due; it is nobody else's until `done`."""
        while True:
            now_s = time.monotonic()
            free = {edge: due_s for edge, due_s in self._due_s.items() if edge not in self._busy}
            DUE.set(sum(due_s <= now_s for due_s in free.values()))
            edge = min(free, key=free.__getitem__, default=None)
            if edge is not None and free[edge] <= now_s:
                del self._due_s[edge]
                self._busy.add(edge)
                return edge
            self._changed.clear()
            timeout_s = None if edge is None else free[edge] - now_s
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except TimeoutError:
                continue

    def done(self, edge: Edge) -> None:
        """Say that an edge was looked at: named meanwhile, it is looked at again."""
        self._busy.discard(edge)
        self._changed.set()
