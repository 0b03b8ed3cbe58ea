"""Which of several replicas may write: the holder of a Lease (coordination.k8s.io/v1), as with Kubernetes' controllers.

A leader that can't renew its lease stops writing before another may begin: it gives up after two thirds of the time.
The clocks of replicas need not agree: a lease counts as old when it has not changed for its duration by our own clock.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from prometheus_client import Gauge

from cncmon_core import logs
from cncmon_operator.kube import CONFLICT, LEASES, NOT_FOUND, REQUESTS, Kube

log = logs.get(__name__)

LEADER: Final = Gauge("cncmon_operator_leader", "1 while this replica may write.")
NAME: Final = "cncmon-operator"


class Leadership:
    """Takes and keeps the lease. `changed` is called with whether we lead, whenever that changes."""

    def __init__(self, kube: Kube, identity: str, lease_s: float, changed: Callable[[bool], None]) -> None:
        self._kube = kube
        self._identity = identity
        self._lease_s = lease_s
        self._changed = changed
        self._seen: tuple[Any, float] | None = None
        self._renewed_s = 0.0
        self.leads = False

    async def run(self) -> None:
        """Try to lead, until cancelled; then give the lease back, so that another need not wait for its end."""
        try:
            while True:
                # A request that hangs must not outlast the lease.
                try:
                    holds = await asyncio.wait_for(self._try(), self._lease_s / 3)
                except Exception as error:  # whatever kept us from renewing it, it is not renewed
                    log.warning("the lease can't be asked for", error=str(error) or type(error).__name__)
                    holds = self.leads and time.monotonic() - self._renewed_s < self._lease_s * 2 / 3
                self._set(holds)
                await asyncio.sleep(self._lease_s / 6)
        finally:
            led = self.leads
            self._set(False)
            if led:
                await asyncio.shield(self._give_back())

    def _set(self, leads: bool) -> None:
        if leads != self.leads:
            self.leads = leads
            LEADER.set(leads)
            log.info("leading" if leads else "not leading", identity=self._identity)
            self._changed(leads)

    async def _try(self) -> bool:
        """Return whether we hold the lease now."""
        started_s = time.monotonic()
        lease = await self._read()
        try:
            if lease is None:
                await self._write(LEASES(metadata=ObjectMeta(name=NAME), spec=self._spec(0)), new=True)
            else:
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") not in (None, "", self._identity) and not self._is_old(lease):
                    return False
                changes = int(spec.get("leaseTransitions") or 0)
                lease["spec"] = self._spec(changes + (spec.get("holderIdentity") != self._identity))
                await self._write(lease, new=False)
        except ApiError as error:
            if error.status.code == CONFLICT:  # somebody else was quicker
                return False
            raise
        self._renewed_s = started_s
        return True

    def _is_old(self, lease: Any) -> bool:
        version = lease["metadata"]["resourceVersion"]
        now_s = time.monotonic()
        if self._seen is None or self._seen[0] != version:
            self._seen = version, now_s
        return now_s - self._seen[1] > self._lease_s

    def _spec(self, transitions: int) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._lease_s)),
            "renewTime": now,
            "acquireTime": now,
            "leaseTransitions": transitions,
        }

    async def _read(self) -> Any:
        REQUESTS.labels("get", "leases").inc()
        try:
            return await self._kube.client.get(LEASES, NAME)
        except ApiError as error:
            if error.status.code == NOT_FOUND:
                return None
            raise

    async def _write(self, lease: Any, *, new: bool) -> None:
        REQUESTS.labels("create" if new else "update", "leases").inc()
        if new:
            await self._kube.client.create(lease)
        else:
            # With its resourceVersion: taken only where nobody wrote in between.
            await self._kube.client.replace(lease, NAME)

    async def _give_back(self) -> None:
        try:
            async with asyncio.timeout(2):
                lease = await self._read()
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._write(lease, new=False)
        except Exception as error:  # the lease runs out by itself
            log.warning("the lease could not be given back", error=str(error) or type(error).__name__)
