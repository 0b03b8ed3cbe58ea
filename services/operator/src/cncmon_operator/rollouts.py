"""Which edges get a changed profile, and when: some at a time, each watched before the next. Pure; no I/O.

What is remembered between two steps, since when an edge is well and which of its machines answered before, is lost with
the process. Then edges are watched anew, which takes longer and lets nothing slip.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from cncmon_core.edge_documents import Edge
from cncmon_core.machine import Rollout, Signal
from cncmon_core.resource_status import TEXT_CHARS_MAX, RolloutStatus

Phase = Literal["Progressing", "Complete", "Stopped", "RolledBack"]

HASH_CHARS: Final = 10
ENDED_BADLY: Final = ("Stopped", "RolledBack")

_encode = msgspec.json.Encoder(order="deterministic").encode


def revision_of(signals: list[Signal]) -> str:
    """Return what tells one state of a profile's signals from another."""
    return hashlib.sha256(_encode(signals)).hexdigest()[:HASH_CHARS]


class View(NamedTuple):
    """How an edge stands to a change.

    has_it: whether its document has it. fresh: whether it is heard of. applied: whether it runs its document. refused:
    why it refuses it. answering, unwell: machines of the profile that answer with all their signals; those that don't,
    and why.
    """

    has_it: bool
    fresh: bool
    applied: bool
    refused: str
    answering: frozenset[str]
    unwell: Mapping[str, str]


class Step(NamedTuple):
    """What is to be done. given: edges whose document is to have the change. again_s: when to look again, seconds."""

    given: frozenset[Edge]
    status: RolloutStatus
    again_s: float | None = None


@dataclass
class _Watched:
    """heard: whether it was heard of when it got the change. answered: which of its machines were well then."""

    given_s: float
    heard: bool
    answered: frozenset[str]
    well_s: float | None = None


@dataclass
class _UnderWay:
    revision: str
    edges: dict[Edge, _Watched] = field(default_factory=dict)


class Rollouts:
    """All profiles' changes that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[str, _UnderWay] = {}

    def step(
        self,
        profile: str,
        how: Rollout,
        revision: str,
        before: RolloutStatus | None,
        views: Mapping[Edge, View],
        now_s: float,
    ) -> Step:
        """Return what to do about a profile whose signals are not the last good ones. before: its status until now."""
        if before is not None and before.revision == revision and before.phase in ENDED_BADLY:
            self._under_way.pop(profile, None)
            kept = frozenset(edge for edge, view in views.items() if view.has_it)
            return Step(kept if before.phase == "Stopped" else frozenset(), before)
        state = self._under_way.get(profile)
        if state is None or state.revision != revision:
            state = self._under_way[profile] = _UnderWay(revision)
        given = {edge for edge, view in views.items() if view.has_it}
        for edge in given - state.edges.keys():
            state.edges[edge] = _Watched(now_s, views[edge].fresh, views[edge].answering)
        failure = next(
            (
                f"{'/'.join(e)}: {why}"
                for e in sorted(given)
                if (why := self._failed(how, state.edges[e], views[e], now_s))
            ),
            None,
        )
        done = {edge for edge in given if self._is_done(how, state.edges[edge], views[edge], now_s)}
        if failure is not None:
            return self._fail(profile, how, revision, failure, given, done, views)
        heard = [edge for edge in sorted(views) if edge not in given and views[edge].fresh]
        silent = {edge for edge, view in views.items() if not view.fresh} - given
        room = how.edges_at_once - len(given - done)
        new = set(heard[: max(0, room)])
        if not heard and given <= done:
            # Of those that are silent nothing can be watched: they get it last, for when they are back.
            new = silent
        for edge in new:
            state.edges[edge] = _Watched(now_s, views[edge].fresh, views[edge].answering)
        if not heard and not silent and given <= done:
            del self._under_way[profile]
            return Step(frozenset(given), self._status("Complete", revision, done, views, ""))
        waits = sorted("/".join(edge) for edge in (given | new) - done)
        text = f"watching {', '.join(waits[:5])}" if waits else ""
        again_s = min(1.0, how.soak_seconds) if how.soak_seconds else 0.2
        return Step(frozenset(given | new), self._status("Progressing", revision, done, views, text), again_s)

    def _fail(
        self,
        profile: str,
        how: Rollout,
        revision: str,
        failure: str,
        given: set[Edge],
        done: set[Edge],
        views: Mapping[Edge, View],
    ) -> Step:
        del self._under_way[profile]
        back = how.on_failure == "RollBack"
        phase: Phase = "RolledBack" if back else "Stopped"
        return Step(frozenset() if back else frozenset(given), self._status(phase, revision, done, views, failure))

    def _failed(self, how: Rollout, watched: _Watched, view: View, now_s: float) -> str:
        """Return why an edge that has the change is not well with it; empty where it is, or may yet be."""
        if view.refused:
            return f"refused: {view.refused}"
        late = now_s - watched.given_s > how.timeout_seconds
        if not view.fresh:
            return "fell silent" if watched.heard and (watched.well_s is not None or late) else ""
        ill = {name: why for name, why in view.unwell.items() if name in watched.answered}
        text = "; ".join(f"{name}: {why}" for name, why in sorted(ill.items()))
        if view.applied and not ill:
            watched.well_s = now_s if watched.well_s is None else watched.well_s
            return ""
        if ill and watched.well_s is not None:
            return f"lost signals: {text}"
        return f"not well after {how.timeout_seconds} s: {text or 'it does not run the change'}" if late else ""

    def _is_done(self, how: Rollout, watched: _Watched, view: View, now_s: float) -> bool:
        if not view.fresh:
            return not watched.heard
        return watched.well_s is not None and now_s - watched.well_s >= how.soak_seconds

    def _status(
        self, phase: Phase, revision: str, done: set[Edge], views: Mapping[Edge, View], text: str
    ) -> RolloutStatus:
        return RolloutStatus(
            phase=phase,
            revision=revision,
            edges_done=len(done),
            edges_total=len(views),
            message=text[:TEXT_CHARS_MAX],
        )
