"""The profiles' changes on their way to the edges: the last good state of each, and who has the new one."""

import time
from collections import ChainMap
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from cncmon_core import logs
from cncmon_core.edge_documents import Edge
from cncmon_core.machine import Machine, MachineProfile, Signal
from cncmon_core.machine_rules import with_profile
from cncmon_core.resource_status import RolloutStatus
from cncmon_operator.heartbeats import Beat
from cncmon_operator.kube import Kube
from cncmon_operator.resources import Resource
from cncmon_operator.rollouts import Rollouts, Step, View, revision_of
from cncmon_operator.status import Heard, Written
from cncmon_operator.store import Store, profile_of

log = logs.get(__name__)

HISTORY: Final = 5
"""States of a profile that are kept."""


class Good(NamedTuple):
    """A state of a profile that all its edges were well with."""

    revision: str
    number: int
    signals: list[Signal]


class Profiles:
    """Not for several at once: under the lock of whoever writes documents."""

    def __init__(self, kube: Kube, store: Store, written: Mapping[Edge, Written], beats: Mapping[Edge, Beat]) -> None:
        """written, beats: by edge, as they are at any time."""
        self._kube = kube
        self._store = store
        self._written = written
        self._beats = beats
        self._rollouts = Rollouts()
        self._good: dict[str, Good] = {}
        self._steps: dict[str, Step] = {}

    async def load(self) -> None:
        """Read the kept states. Raises lightkube's and httpx's errors."""
        for raw in sorted(await self._kube.revisions(), key=lambda raw: int(raw["revision"])):
            profile = raw["metadata"]["labels"]["cncmon.dev/profile"]
            try:
                signals = msgspec.convert(raw["data"]["signals"], list[Signal])
            except (KeyError, TypeError, msgspec.ValidationError) as error:
                log.warning("a kept state of a profile can't be read", name=raw["metadata"]["name"], error=str(error))
                continue
            self._good[profile] = Good(revision_of(signals), int(raw["revision"]), signals)

    def of_edge(self, edge: Edge) -> Mapping[str, Resource]:
        """Return the profiles as an edge is to have them now."""
        held: dict[str, Resource] = {}
        for name, step in self._steps.items():
            profile = self._store.profiles.get(name)
            if edge in step.given or profile is None or not isinstance(profile.document, MachineProfile):
                continue
            spec = msgspec.structs.replace(profile.document.spec, signals=self._good[name].signals)
            held[name] = profile._replace(document=msgspec.structs.replace(profile.document, spec=spec))
        return ChainMap(held, self._store.profiles) if held else self._store.profiles

    def status_of(self, name: str) -> RolloutStatus | None:
        """Return how far a profile's change is; None where there is nothing to say."""
        step = self._steps.get(name)
        return step.status if step is not None else None

    async def step(self, name: str, now: datetime, stale_after_s: float) -> tuple[set[Edge], float | None]:
        """Go on with a profile; return the edges to be looked at, and in how many seconds to come back."""
        profile = self._store.profiles.get(name)
        if profile is None or profile.faults or not isinstance(profile.document, MachineProfile):
            self._steps.pop(name, None)
            return set(), None
        spec = profile.document.spec
        revision, good = revision_of(spec.signals), self._good.get(name)
        before = self._steps.pop(name, None)
        if good is not None and good.revision == revision:
            if spec.rollout is not None and before is not None:
                self._steps[name] = before._replace(given=frozenset(self._edges_of(name)))
            return set(), None
        if good is None or spec.rollout is None:
            await self._keep(profile, revision, spec.signals)
            return self._edges_of(name), None
        views = {edge: self._view(edge, name, spec, Heard.at(self._beats.get(edge), now, stale_after_s))
                 for edge in self._edges_of(name)}  # fmt: skip
        told = before.status if before is not None else _told(profile)
        step = self._rollouts.step(name, spec.rollout, revision, told, views, time.monotonic())
        self._steps[name] = step
        if told is None or (told.phase, told.revision) != (step.status.phase, step.status.revision):
            log.info("rollout", profile=name, phase=step.status.phase, revision=revision, why=step.status.message)
        if step.status.phase == "Complete":
            await self._keep(profile, revision, spec.signals)
        has_it = {edge for edge, view in views.items() if view.has_it}
        return has_it ^ set(step.given), step.again_s

    async def _keep(self, profile: Resource, revision: str, signals: list[Signal]) -> None:
        good = self._good.get(profile.name)
        number = good.number + 1 if good is not None else 1
        await self._kube.keep_revision(profile, revision, number, msgspec.to_builtins(signals))
        self._good[profile.name] = Good(revision, number, signals)
        kept = [raw for raw in await self._kube.revisions() if raw["metadata"]["name"].startswith(f"{profile.name}-")
                and raw["metadata"]["labels"]["cncmon.dev/profile"] == profile.name]  # fmt: skip
        for raw in sorted(kept, key=lambda raw: int(raw["revision"]))[:-HISTORY]:
            await self._kube.drop_revision(raw["metadata"]["name"])

    def _edges_of(self, name: str) -> set[Edge]:
        return {one.edge for one in self._store.machines.values() if one.edge and profile_of(one) == name}

    def _view(self, edge: Edge, name: str, spec: Any, heard: Heard) -> View:
        config = self._written[edge].config if edge in self._written else None
        there = config.by_name if config is not None else {}
        mine = [one for one in self._store.of_edge(edge) if profile_of(one) == name and one.name in there]
        beat = heard.beat
        names = {one.name for one in mine}
        errors = [str(one) for one in (beat.config.errors if beat is not None else []) if one.machine in names | {""}]
        unwell: dict[str, str] = {}
        for one in mine:
            seen = beat.machine(one.name) if beat is not None else None
            if seen is None or seen.state != "connected":
                unwell[one.name] = (seen.error if seen is not None else None) or "it does not answer"
            elif seen.signals:
                unwell[one.name] = "; ".join(f"{signal}: {why}" for signal, why in sorted(seen.signals.items()))
        return View(
            has_it=bool(mine) and all(_has(there[one.name], one, spec) for one in mine),
            fresh=heard.fresh,
            applied=beat is not None and config is not None and beat.config.sha256 == config.sha256,
            refused=errors[0] if errors else "",
            answering=frozenset(names - unwell.keys()),
            unwell=unwell,
        )


def _has(there: Machine, resource: Resource, spec: Any) -> bool:
    machine = resource.document
    return isinstance(machine, Machine) and there.spec.signals == with_profile(machine.spec, spec).signals


def _told(profile: Resource) -> RolloutStatus | None:
    """Return what a profile's status says of its rollout: what an earlier leader decided."""
    try:
        return msgspec.convert(profile.status["rollout"], RolloutStatus)
    except (KeyError, msgspec.ValidationError):
        return None
