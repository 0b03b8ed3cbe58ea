"""What happens when on one machine: a plan without end, made piece by piece from the seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import dist
from typing import Final, Literal

from cncmon_simulator.shop import alarms
from cncmon_simulator.shop.kinds import Kind
from cncmon_simulator.shop.paths import Path, Point, Polyline, Rest
from cncmon_simulator.shop.work import Operation, Program, programs

State = Literal["running", "idle", "hold", "alarm"]
Mode = Literal["AUTOMATIC", "MANUAL", "MANUAL_DATA_INPUT"]

DAY_S: Final = 86_400.0
_H: Final = 3600.0
PAUSES_S: Final = (
    (-2 * _H, 6 * _H),
    (9 * _H, 9.25 * _H),
    (11.5 * _H, 12 * _H),
    (14 * _H, 14.2 * _H),
    (17 * _H, 17.25 * _H),
    (19 * _H, 19.5 * _H),
    (22 * _H, 30 * _H),
)
"""When nobody is there, in seconds of the day: two shifts, 6 to 14 and 14 to 22, each with a break and a meal."""

FIRST_BREAK_S: Final = 9 * _H
HOLD_EVERY_S: Final = 420.0
"""A feed hold comes once in so many seconds of cutting, on average, and an alarm once in:"""
ALARM_EVERY_S: Final = 1800.0
HOLD_S: Final = (5.0, 35.0)
TOOL_LIFE_S: Final = (900.0, 3000.0)
REPLACE_TOOL_S: Final = (40.0, 110.0)
SETUP_S: Final = (90.0, 300.0)
PARTS_OF_A_JOB: Final = (8, 30)
OVERRIDES: Final = (100, 100, 100, 100, 90, 80, 110, 120)


@dataclass(slots=True)
class Segment:
    """A stretch of time in which one thing goes on; what changes within it changes as the fields say.

    Times in seconds of the story. The path is followed from `s_mm` at `feed_mm_min`. wear_per_s: percent a second.
    load_percent: of the cut with a new tool. line: program line at start, then `lines_per_s`.
    """

    start_s: float
    end_s: float
    state: State
    mode: Mode
    program: str
    path: Path
    s_mm: float = 0.0
    feed_mm_min: float = 0.0
    rpm: float = 0.0
    load_percent: float = 0.0
    tool: int = 1
    wear_percent: float = 0.0
    wear_per_s: float = 0.0
    line: float = 0.0
    lines_per_s: float = 0.0
    part_count: int = 0
    parts_planned: int = 0
    override_percent: int = 100
    alarm_code: int = 0
    door_open: bool = False


@dataclass(slots=True)
class _Tool:
    life_s: float
    worn_percent: float


@dataclass
class Plan:
    """The plan of one machine. Iterate `segments` once: they follow one another without a hole, from time 0, for ever.

    `opening` (0 to 4) says how the machine is met at time 0, so that five machines side by side show every state.
    """

    kind: Kind
    rng: random.Random
    opening: int
    programs: list[Program] = field(init=False)
    _now_s: float = 0.0

    def __post_init__(self) -> None:
        rng = self.rng
        self.programs = programs(self.kind, rng)
        # The first break is 5 minutes to 2½ hours away, at another time for each: a hall that all rests at once shows
        # nothing to whoever looks just then.
        self._day_offset_s = FIRST_BREAK_S - rng.uniform(300, 2.5 * _H)
        self._tools = {n: _Tool(rng.uniform(*TOOL_LIFE_S), rng.uniform(5, 92)) for n in range(1, 9)}
        self._program = rng.choice(self.programs)
        self._planned = rng.randint(*PARTS_OF_A_JOB)
        self._done = rng.randint(1, self._planned - 2)
        self._position: Point = self.kind.home
        self._tool = self._program.operations[0].tool
        self._override = 100
        self._line = 0.0

    def segments(self) -> Iterator[Segment]:
        """Yield what happens, from time 0 on."""
        yield from self._open()
        while True:
            while self._done < self._planned:
                yield from self._pause()
                yield from self._part()
            yield from self._new_job()

    def _segment(self, seconds: float, state: State, mode: Mode = "AUTOMATIC") -> Segment:
        """Return a segment of the given length from now on, at rest, and move on to its end."""
        start, self._now_s = self._now_s, self._now_s + seconds
        return Segment(
            start_s=start,
            end_s=self._now_s,
            state=state,
            mode=mode,
            program=self._program.name,
            path=Rest(self._position),
            tool=self._tool,
            wear_percent=self._tools[self._tool].worn_percent,
            line=self._line,
            part_count=self._done,
            parts_planned=self._planned,
            override_percent=self._override,
        )

    def _open(self) -> Iterator[Segment]:
        match self.opening:
            case 2:
                operation = self._program.operations[0]
                self._position = operation.path.at(0)
                yield from self._hold(self.rng.uniform(15, 30), operation)
                yield from self._cut(operation)
            case 3:
                yield replace(self._segment(self.rng.uniform(20, 40), "idle"), door_open=True)
            case 4:
                yield from self._alarm()
            case _:
                self._position = self._program.operations[-1].path.at(0)
                yield from self._cut(self._program.operations[-1])
                self._done += 1

    def _pause(self) -> Iterator[Segment]:
        day_s = (self._day_offset_s + self._now_s) % DAY_S
        for start, end in PAUSES_S:
            if start <= day_s < end:
                yield self._segment(end - day_s + self.rng.uniform(0, 90), "idle")

    def _new_job(self) -> Iterator[Segment]:
        self._program = self.rng.choice(self.programs)
        self._planned, self._done = self.rng.randint(*PARTS_OF_A_JOB), 0
        yield replace(self._segment(self.rng.uniform(*SETUP_S), "idle", "MANUAL"), door_open=True)
        first = self._program.operations[0]
        trial = self._segment(self.rng.uniform(15, 40), "running", "MANUAL_DATA_INPUT")
        yield replace(trial, rpm=first.rpm / 2)

    def _part(self) -> Iterator[Segment]:
        self._override = self.rng.choice(OVERRIDES)
        self._line = 1.0
        for operation in self._program.operations:
            yield from self._change_tool(operation)
            yield from self._cut(operation)
        self._done += 1
        yield from self._rapid_to(self.kind.home)
        self._line = 0.0
        yield replace(self._segment(self.rng.uniform(*self.kind.load_s), "idle"), door_open=True)

    def _change_tool(self, operation: Operation) -> Iterator[Segment]:
        yield from self._rapid_to(self.kind.home)
        if self._tools[operation.tool].worn_percent >= 100:
            yield from self._replace_worn(operation.tool)
        if operation.tool != self._tool:
            yield self._segment(self.kind.change_s, "running")
            self._tool = operation.tool
        yield from self._rapid_to(operation.path.at(0), operation.rpm)

    def _replace_worn(self, tool: int) -> Iterator[Segment]:
        self._tool = tool
        seconds = self.rng.uniform(*REPLACE_TOOL_S)
        yield replace(self._segment(seconds, "idle", "MANUAL"), door_open=True)
        self._tools[tool] = _Tool(self.rng.uniform(*TOOL_LIFE_S), 0.0)

    def _rapid_to(self, point: Point, rpm: float = 0.0) -> Iterator[Segment]:
        way = dist(self._position, point)
        if way < 0.001:
            return
        speed = self.kind.rapid_mm_min
        rapid = self._segment(way / speed * 60, "running")
        yield replace(rapid, path=Polyline([self._position, point]), feed_mm_min=speed, rpm=rpm)
        self._position = point

    def _cut(self, operation: Operation) -> Iterator[Segment]:
        """Yield one cut, in pieces where a feed hold or an alarm comes between."""
        self._tool = operation.tool
        total_s = operation.cut_s * 100 / self._override
        line = self._line
        done_s = 0.0
        while done_s < total_s:
            hold_s, alarm_s = self.rng.expovariate(1 / HOLD_EVERY_S), self.rng.expovariate(1 / ALARM_EVERY_S)
            piece_s = min(total_s - done_s, max(hold_s, 1.0), max(alarm_s, 1.0))
            self._line = line + operation.lines * done_s / total_s
            yield self._piece(operation, piece_s, done_s, operation.lines / total_s)
            done_s += piece_s
            self._line = line + operation.lines * done_s / total_s
            if done_s < total_s:
                yield from self._alarm() if alarm_s < hold_s else self._hold(self.rng.uniform(*HOLD_S), operation)

    def _piece(self, operation: Operation, seconds: float, done_s: float, lines_per_s: float) -> Segment:
        tool = self._tools[operation.tool]
        feed = operation.feed_mm_min * self._override / 100
        wear_per_s = 100 / tool.life_s
        piece = replace(
            self._segment(seconds, "running"),
            path=operation.path,
            s_mm=done_s * feed / 60,
            feed_mm_min=feed,
            rpm=operation.rpm,
            load_percent=operation.load_percent * self._override / 100,
            wear_per_s=wear_per_s,
            lines_per_s=lines_per_s,
        )
        tool.worn_percent += wear_per_s * seconds
        self._position = operation.path.at((done_s + seconds) * feed / 60)
        return piece

    def _hold(self, seconds: float, operation: Operation) -> Iterator[Segment]:
        # Feed hold stops the axes; the spindle turns on.
        yield replace(self._segment(seconds, "hold"), rpm=operation.rpm)

    def _alarm(self) -> Iterator[Segment]:
        alarm, seconds = alarms.draw(self.rng)
        yield replace(self._segment(seconds, "alarm"), alarm_code=alarm.code)
        yield replace(self._segment(self.rng.uniform(4, 15), "idle", "MANUAL"), door_open=alarm.code == alarms.BREAKAGE)
