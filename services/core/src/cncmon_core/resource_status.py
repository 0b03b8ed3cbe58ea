"""The status of Machine, MachineProfile and EdgeNode as Kubernetes resources: what is so; `spec` says what should be.

Written by the operator alone, into the status subresource. Conditions are those of Kubernetes' API conventions
(metav1.Condition).
"""

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cncmon_core.names import NAME_CHARS_MAX

MACHINE_CONDITIONS: Final = ("Accepted", "Configured", "Applied", "Connected", "Ready")
"""Accepted: the document can be used. Configured: its edge's configuration has it. Applied: the edge runs that.
Connected: the machine answers. Ready: all of these.
"""

PROFILE_CONDITIONS: Final = ("Accepted", "RolledOut")
EDGE_CONDITIONS: Final = ("Connected", "Applied", "Ready")

ERRORS_MAX: Final = 20
"""Faults told of one resource; nobody reads more."""

TEXT_CHARS_MAX: Final = 1024


class _Status(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    observed_generation: Annotated[
        int, Meta(ge=0, description="The metadata.generation that this status is about.")
    ] = 0
    conditions: Annotated[
        list["Condition"], Meta(max_length=10, description="What is true of it, what is not, and why.")
    ] = []


class Condition(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """One thing that is true, or is not, and why."""

    type: Annotated[str, Meta(max_length=63, description="What this is about, such as Ready.")]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether it is so.")]
    reason: Annotated[str, Meta(min_length=1, max_length=63, description="Why, in one word for programs.")]
    message: Annotated[str, Meta(max_length=TEXT_CHARS_MAX, description="Why, in a sentence for people.")] = ""
    last_transition_time: Annotated[datetime, Meta(tz=True, description="Since when status is what it is.")]
    observed_generation: Annotated[int, Meta(ge=0, description="The metadata.generation that this is about.")] = 0


class ResourceFault(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """What is wrong, and where."""

    path: Annotated[str, Meta(max_length=TEXT_CHARS_MAX, description="The place, such as $.spec.signals[2].bit.")]
    problem: Annotated[str, Meta(max_length=TEXT_CHARS_MAX, description="The value, the fault, what is allowed.")]


class MachineStatus(_Status, rename="camel", omit_defaults=True, kw_only=True):
    """What is so of one machine."""

    state: Annotated[
        str, Meta(max_length=16, description="running, idle, alarm, hold, or offline while nothing is heard of it.")
    ] = ""
    protocol: Annotated[str, Meta(max_length=16, description="The driver that reads it.")] = ""
    last_value_time: Annotated[datetime, Meta(tz=True, description="When its last sample was taken.")] | None = None
    applied_revision: Annotated[
        int, Meta(ge=0, description="Revision of the edge's configuration that the edge runs.")
    ] = 0
    profile_revision: Annotated[
        str, Meta(max_length=NAME_CHARS_MAX, description="Which state of its profile it is read by.")
    ] = ""
    errors: Annotated[
        list[ResourceFault],
        Meta(max_length=ERRORS_MAX, description="What is wrong with it, as found by operator or edge."),
    ] = []


class RolloutStatus(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """How far a change of a profile is."""

    phase: Annotated[Literal["Progressing", "Complete", "Stopped", "RolledBack"], Meta(description="Where it stands.")]
    revision: Annotated[
        str, Meta(max_length=NAME_CHARS_MAX, description="Which state of the signals this is about.")
    ] = ""
    edges_done: Annotated[int, Meta(ge=0, description="Edges that run the change, and were well with it.")] = 0
    edges_total: Annotated[int, Meta(ge=0, description="Edges that have machines of this profile.")] = 0
    message: Annotated[str, Meta(max_length=TEXT_CHARS_MAX, description="What it waits for, or why it ended.")] = ""


class MachineProfileStatus(_Status, rename="camel", omit_defaults=True, kw_only=True):
    """What is so of one profile."""

    machines: Annotated[int, Meta(ge=0, description="Machines that refer to it.")] = 0
    rollout: Annotated[RolloutStatus, Meta(description="How far its last change is.")] | None = None


class EdgeNodeStatus(_Status, rename="camel", omit_defaults=True, kw_only=True):
    """What is so of one edge, as its heartbeat tells."""

    version: Annotated[str, Meta(max_length=63, description="Version of the agent.")] = ""
    last_seen: Annotated[datetime, Meta(tz=True, description="When its last heartbeat came.")] | None = None
    config_revision: Annotated[int, Meta(ge=0, description="Revision of the configuration written for it.")] = 0
    applied_revision: Annotated[int, Meta(ge=0, description="Revision of the configuration that it runs.")] = 0
    machines: Annotated[int, Meta(ge=0, description="Machines that it should read.")] = 0
    machines_connected: Annotated[int, Meta(ge=0, description="Machines that answer it.")] = 0
    buffer_hours_left: (
        Annotated[float, Meta(ge=0, description="Hours of outage that its buffer can still take.")] | None
    ) = None
    problems: Annotated[
        list[Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]],
        Meta(max_length=ERRORS_MAX, description="What the edge itself finds wrong."),
    ] = []
