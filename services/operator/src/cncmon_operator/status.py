"""What the status of a resource should be, given what was written and what was heard. Pure; no I/O."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import msgspec

from cncmon_core.edge_config import EdgeConfig
from cncmon_core.machine import Machine
from cncmon_core.resource_status import (
    ERRORS_MAX,
    TEXT_CHARS_MAX,
    Condition,
    EdgeNodeStatus,
    MachineProfileStatus,
    MachineStatus,
    ResourceFault,
    RolloutStatus,
)
from cncmon_operator.heartbeats import Beat
from cncmon_operator.resources import Resource, fault

Truth = Literal["True", "False", "Unknown"]

PASSING: Final = frozenset({"Pending", "Connecting"})
"""Reasons that go by themselves: nobody need do anything."""

FIGURES: Final = frozenset(
    {"lastValueTime", "lastSeen", "bufferHoursLeft", "machinesConnected", "appliedRevision", "configRevision"}
)
"""Fields that change all the time: no reason to write a status as often as one that tells news."""


class Said(NamedTuple):
    """One condition: whether, why in one word, why in a sentence."""

    truth: Truth
    reason: str
    message: str = ""


class Written(NamedTuple):
    """What is known of an edge's document. config: what the key holds; trouble: why it isn't what is wanted."""

    config: EdgeConfig | None
    trouble: Said | None = None


class Heard(NamedTuple):
    """What is known of an edge by its heartbeats. beat: the last one; fresh: whether it is recent."""

    beat: Beat | None
    fresh: bool

    @classmethod
    def at(cls, beat: Beat | None, now: datetime, stale_after_s: float) -> "Heard":
        """Return how things stand at a moment."""
        return cls(beat, beat is not None and now - beat.received <= timedelta(seconds=stale_after_s))

    def silence(self) -> Said | None:
        """Return why nothing can be said of what the edge does now; None where something can."""
        if self.beat is None:
            return Said("Unknown", "NeverHeard", "no heartbeat of the edge has come yet")
        if not self.fresh:
            return Said("Unknown", "EdgeSilent", f"the edge was last heard of at {_text(self.beat.received)}")
        return None


def of_machine(
    resource: Resource, faults: Sequence[ResourceFault], written: Written, heard: Heard, now: datetime
) -> MachineStatus:
    """Return a Machine's status. faults: why it can't be used, as found here."""
    name, beat = resource.name, heard.beat
    seen = beat.machine(name) if beat is not None else None
    accepted = Said("False", "Invalid", _sentence(faults)) if faults else Said("True", "Valid")
    configured = _configured(name, accepted, written)
    refused = [fault(problem.path, problem.problem) for problem in _refused(beat, name)]
    applied = heard.silence() or _applied(written, beat, refused)
    connected = heard.silence() or _connected(seen)
    said = {"Accepted": accepted, "Configured": configured, "Applied": applied, "Connected": connected}
    answers = connected.truth == "True"
    machine = resource.document
    return MachineStatus(
        observed_generation=resource.generation,
        conditions=_conditions(resource, said | {"Ready": _ready(said)}, now),
        state=(seen.machine_state or "") if seen is not None and answers else "offline",
        protocol=machine.spec.connection.driver() if isinstance(machine, Machine) else "",
        last_value_time=seen.last_sample if seen is not None else None,
        applied_revision=(beat.config.revision or 0) if beat is not None else 0,
        errors=[*faults, *refused][:ERRORS_MAX],
    )


def of_edge(resource: Resource, written: Written, heard: Heard, machines: int, now: datetime) -> EdgeNodeStatus:
    """Return an EdgeNode's status. machines: how many resources name this edge."""
    beat = heard.beat
    silence = heard.silence()
    refused = _refused(beat, None)
    said = {
        "Connected": silence or Said("True", "Heartbeat"),
        "Applied": silence or _applied(written, beat, [fault(one.path, str(one)) for one in refused]),
    }
    if silence is not None:
        said["Connected"] = silence._replace(truth="False")
    status = EdgeNodeStatus(
        observed_generation=resource.generation,
        conditions=_conditions(resource, said | {"Ready": _ready(said)}, now),
        config_revision=written.config.revision if written.config is not None else 0,
        machines=machines,
    )
    if beat is not None:
        status.version, status.last_seen = beat.version[:63], beat.received.replace(microsecond=0)
        status.applied_revision = beat.config.revision or 0
        status.machines_connected = sum(one.state == "connected" for one in beat.machines) if heard.fresh else 0
        status.buffer_hours_left = beat.buffer.hours_left
        status.problems = [text[:TEXT_CHARS_MAX] for text in beat.problems[:ERRORS_MAX]]
    return status


def of_profile(resource: Resource, machines: int, rollout: RolloutStatus | None, now: datetime) -> MachineProfileStatus:
    """Return a MachineProfile's status. machines: how many refer to it. rollout: how far its last change is."""
    accepted = Said("False", "Invalid", _sentence(resource.faults)) if resource.faults else Said("True", "Valid")
    said = {"Accepted": accepted}
    if rollout is not None:
        said["RolledOut"] = Said("True" if rollout.phase == "Complete" else "False", rollout.phase, rollout.message)
    return MachineProfileStatus(
        observed_generation=resource.generation,
        conditions=_conditions(resource, said, now),
        machines=machines,
        rollout=rollout,
    )


def patch(resource: Resource, status: msgspec.Struct) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) that makes a resource's status this one; empty where it is."""
    wanted = msgspec.to_builtins(status)
    changed = {field: value for field, value in wanted.items() if resource.status.get(field) != value}
    return changed | {field: None for field in resource.status if field not in wanted}


def tells_news(changes: dict[str, Any]) -> bool:
    """Return whether a patch is more than times and figures."""
    return bool(changes.keys() - FIGURES)


def _configured(name: str, accepted: Said, written: Written) -> Said:
    config = written.config
    there = config is not None and name in config.by_name
    if accepted.truth != "True":
        kept = "; the edge keeps the last good form of it" if there else ""
        return Said("False", "NotAccepted", f"it can't be used{kept}")
    if written.trouble is not None:
        return written.trouble
    if config is None or not there:
        return Said("False", "Pending", "the edge's configuration does not have it yet")
    return Said("True", "Written", f"revision {config.revision} of the edge's configuration has it")


def _refused(beat: Beat | None, machine: str | None) -> list[Any]:
    """Return what an edge finds wrong with its newest document: with one machine, or with all of it."""
    if beat is None:
        return []
    return [one for one in beat.config.errors if machine is None or one.machine in (machine, "")]


def _applied(written: Written, beat: Beat | None, refused: list[ResourceFault]) -> Said:
    config = written.config
    if refused:
        return Said("False", "Refused", _sentence(refused))
    if beat is None or config is None:
        return Said("False", "Pending", "nothing is written for the edge yet")
    if beat.config.sha256 == config.sha256:
        return Said("True", "Running", f"the edge runs revision {beat.config.revision}")
    return Said("False", "Pending", f"the edge runs revision {beat.config.revision or 'none'}, not {config.revision}")


def _connected(seen: Any) -> Said:
    if seen is None:
        return Said("False", "NotRead", "the edge does not read it yet")
    if seen.state == "connected":
        return Said("True", "Answers")
    reason = "Connecting" if seen.state == "connecting" else "Offline"
    return Said("False", reason, (seen.error or "it does not answer")[:TEXT_CHARS_MAX])


def _ready(said: dict[str, Said]) -> Said:
    missing = next((one for one in said.items() if one[1].truth != "True"), None)
    if missing is None:
        return Said("True", "AllTrue")
    kind, why = missing
    truth: Truth = "Unknown" if why.truth == "Unknown" else "False"
    return Said(truth, why.reason, f"not {kind}: {why.message}"[:TEXT_CHARS_MAX])


def _conditions(resource: Resource, said: dict[str, Said], now: datetime) -> list[Condition]:
    before = {one.get("type"): one for one in resource.status.get("conditions", ())}
    made = []
    for kind, one in said.items():
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == one.truth else None
        made.append(
            Condition(
                type=kind,
                status=one.truth,
                reason=one.reason,
                message=one.message,
                last_transition_time=datetime.fromisoformat(since) if since else now.replace(microsecond=0),
                observed_generation=resource.generation,
            )
        )
    return made


def _sentence(faults: Sequence[ResourceFault]) -> str:
    first = faults[0]
    place = first.path.removeprefix("$").removeprefix(".")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{place}: {first.problem}{more}"[:TEXT_CHARS_MAX] if place else f"{first.problem}{more}"[:TEXT_CHARS_MAX]


def _text(moment: datetime) -> str:
    return moment.replace(microsecond=0).isoformat()
