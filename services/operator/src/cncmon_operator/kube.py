"""What the operator asks of the API server, counted: lists, status, finalizers, events, the lease."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import lightkube
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.operators import exists
from lightkube.types import PatchType
from prometheus_client import Counter

from cncmon_core import logs
from cncmon_core.machine import API_VERSION
from cncmon_operator.resources import FINALIZER, KINDS, Resource, read
from cncmon_operator.tracing import TRACER

log = logs.get(__name__)

REQUESTS: Final = Counter("cncmon_operator_api_requests", "Requests to the API server.", ["verb", "resource"])

CHUNK: Final = 200
"""Resources in one answer to a list."""
FIELD_MANAGER: Final = "cncmon-operator"
NOT_FOUND: Final = 404
CONFLICT: Final = 409
INVALID: Final = 422

GROUP, VERSION = API_VERSION.split("/")
PLURALS: Final = {"Machine": "machines", "MachineProfile": "machineprofiles", "EdgeNode": "edgenodes"}
_OURS: Final[dict[str, Any]] = {kind: create_namespaced_resource(GROUP, VERSION, kind, PLURALS[kind]) for kind in KINDS}
_REVISIONS: Final[Any] = create_namespaced_resource("apps", "v1", "ControllerRevision", "controllerrevisions")
_PROFILE: Final = "cncmon.dev/profile"
"""The label of a kept revision: whose it is."""
_EVENTS: Final[Any] = create_namespaced_resource("events.k8s.io", "v1", "Event", "events")
LEASES: Final[Any] = create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases")

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace() -> str:
    """Return the namespace that this process runs in, or its kubeconfig's."""
    if _ACCOUNT.exists():
        return _ACCOUNT.read_text().strip()
    config = KubeConfig.from_env().get()
    return (config.namespace if config is not None else None) or "default"


class Kube:
    """One namespace of an API server. Every method may raise lightkube's ApiError, and httpx's errors."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.client = lightkube.AsyncClient(namespace=namespace, field_manager=FIELD_MANAGER)

    async def listed(self, kind: str) -> list[Resource]:
        """Return all resources of a kind."""
        REQUESTS.labels("list", PLURALS[kind]).inc()
        # A list's items do not say their kind. Read as they come: what the server adds takes more room than the rest.
        return [read({**one, "kind": kind}) async for one in self.client.list(_OURS[kind], chunk_size=CHUNK)]

    async def set_status(self, resource: Resource, changes: Mapping[str, Any]) -> bool:
        """Merge changes into a resource's status; return whether it is still there."""
        REQUESTS.labels("patch_status", PLURALS[resource.kind]).inc()
        which = {"k8s.resource.kind": resource.kind, "k8s.resource.name": resource.name}
        try:
            # By the uid: a resource made anew under this name must not get what was said of the one before.
            body = {"metadata": {"uid": resource.uid}, "status": dict(changes)}
            with TRACER.start_as_current_span("patch status", attributes=which):
                await self.client.patch(_OURS[resource.kind].Status, resource.name, body, patch_type=PatchType.MERGE)
        except ApiError as error:
            if error.status.code in (NOT_FOUND, CONFLICT):
                return False
            raise
        return True

    async def set_finalizers(self, resource: Resource, finalizers: Sequence[str]) -> bool:
        """Set a resource's finalizers where they are what we think they are; return whether they were."""
        REQUESTS.labels("patch", PLURALS[resource.kind]).inc()
        path = "/metadata/finalizers"
        patch: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": resource.uid}]
        if resource.finalizers:
            patch.append({"op": "test", "path": path, "value": list(resource.finalizers)})
        patch.append({"op": "add", "path": path, "value": list(finalizers)})
        try:
            await self.client.patch(_OURS[resource.kind], resource.name, patch, patch_type=PatchType.JSON)
        except ApiError as error:
            if error.status.code in (NOT_FOUND, CONFLICT, INVALID):
                return False
            raise
        return True

    async def hold(self, resource: Resource) -> bool:
        """See to it that a resource can't go before we let go of it; return whether that is so."""
        return FINALIZER in resource.finalizers or await self.set_finalizers(
            resource, [*resource.finalizers, FINALIZER]
        )

    async def let_go(self, resource: Resource) -> bool:
        """Let a resource go; return whether that is so."""
        others = [one for one in resource.finalizers if one != FINALIZER]
        return FINALIZER not in resource.finalizers or await self.set_finalizers(resource, others)

    async def make_edge(self, name: str, site: str, edge: str) -> None:
        """Make the EdgeNode of an edge that was heard of."""
        REQUESTS.labels("create", "edgenodes").inc()
        made = _OURS["EdgeNode"](
            metadata=ObjectMeta(name=name, labels={"cncmon.dev/made-from": "heartbeat"}),
            spec={"site": site, "edge": edge},
        )
        try:
            await self.client.create(made)
        except ApiError as error:
            if error.status.code != CONFLICT:
                raise

    async def revisions(self) -> list[dict[str, Any]]:
        """Return the kept revisions of all profiles, as ControllerRevisions."""
        REQUESTS.labels("list", "controllerrevisions").inc()
        return [one async for one in self.client.list(_REVISIONS, labels={_PROFILE: exists()})]

    async def keep_revision(self, profile: Resource, revision: str, number: int, signals: Any) -> None:
        """Keep a state of a profile's signals as its newest; it goes when the profile goes."""
        REQUESTS.labels("create", "controllerrevisions").inc()
        owner = {"apiVersion": API_VERSION, "kind": profile.kind, "name": profile.name, "uid": profile.uid}
        name = f"{profile.name}-{revision}"
        made = _REVISIONS(
            metadata={"name": name, "labels": {_PROFILE: profile.name}, "ownerReferences": [owner]},
            revision=number,
            data={"signals": signals},
        )
        try:
            await self.client.create(made)
        except ApiError as error:
            if error.status.code != CONFLICT:
                raise
            # A state that was there before is the newest again.
            await self.client.patch(_REVISIONS, name, {"revision": number}, patch_type=PatchType.MERGE)

    async def drop_revision(self, name: str) -> None:
        """Forget a kept revision."""
        REQUESTS.labels("delete", "controllerrevisions").inc()
        try:
            await self.client.delete(_REVISIONS, name)
        except ApiError as error:
            if error.status.code != NOT_FOUND:
                raise

    async def tell(self, resource: Resource, kind: str, reason: str, note: str) -> None:
        """Record an event about a resource. kind: Normal or Warning. One that can't be told is no reason to stop."""
        REQUESTS.labels("create", "events").inc()
        now = datetime.now(UTC)
        regarding = {
            "apiVersion": API_VERSION,
            "kind": resource.kind,
            "name": resource.name,
            "namespace": self.namespace,
            "uid": resource.uid,
        }
        event = _EVENTS(
            metadata=ObjectMeta(name=f"{resource.name}.{time.time_ns():x}", namespace=self.namespace),
            eventTime=now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            reportingController="cncmon.dev/operator",
            reportingInstance=FIELD_MANAGER,
            action="Reconcile",
            type=kind,
            reason=reason,
            note=note[:1024],
            regarding=regarding,
        )
        try:
            await self.client.create(event)
        except ApiError as error:
            log.warning("an event could not be told", reason=reason, error=str(error))
