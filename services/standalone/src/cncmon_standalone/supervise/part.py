"""A part: one program that the supervisor keeps running, and how to tell that it is ready."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from cncmon_standalone.embedded.process import Command

Probe = Callable[[], Awaitable[str | None]]
"""Returns None once the part is ready, else one sentence that says what is missing."""


class State(StrEnum):
    """What a part is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True)
class Part:
    """One program.

    group: what it is addressed by when several of a kind run side by side (`ingest-1`, `ingest-2`).
    command: called before every start; may be slow (it runs in a thread) and may raise PartError.
    ready: asked until it returns None; None for a program that runs to its end (`once`), which is ready at exit 0.
    after: names of the parts that must have been ready before this one is started.
    stop_s_max: how long it may take to stop, in seconds, before it is killed.
    """

    name: str
    group: str
    title: str
    command: Callable[[], Command]
    ready: Probe | None
    after: tuple[str, ...] = ()
    monitor_port: int | None = None
    stop_s_max: float = 10.0
    once: bool = field(default=False)


@dataclass(frozen=True)
class Event:
    """Something that happened to a part, for people and for the supervisor's log. `seconds`: how long it took."""

    part: Part
    state: State
    text: str
    seconds: float = 0.0
