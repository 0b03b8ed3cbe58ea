"""The measurement of a demo with --for, and the reader behind the live line's latency of one without.

The window begins when every machine has answered its first poll and ends when the stop begins. Then the agent is
stopped (it hands over what it has and waits for the watermark), ingest is given the time to commit everything, and the
simulator's log of answered polls and the agent's log of accepted samples are compared with the table (`proof.compare`).
Latency is seen by a reader process of its own (`proof.reader`).
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import asyncpg
import msgspec

from cncmon_core import machine_files
from cncmon_standalone import backlog, live, system
from cncmon_standalone.console import Progress
from cncmon_standalone.demo import report
from cncmon_standalone.embedded.process import base_environ, dying_with_parent
from cncmon_standalone.errors import StandaloneError
from cncmon_standalone.proof import compare, latency
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.usage import Usage
from cncmon_standalone.supervise.part import Event, State
from cncmon_standalone.supervise.supervisor import Supervisor

READ_MS_PRECISE, READ_MS_CALM = 4, 50
LINE_S = 5.0
DRAIN_S_MAX = 150.0
"""Messages that a killed worker had in hand come again after ack_wait (30 s), at most three times."""
READER_S_MAX = 15.0


class Measurement:
    """One run. `start` before the agents, `run` once data is shown, `stop` in any case."""

    def __init__(self, supervisor: Supervisor, plan: system.Plan, folder: Path, progress: Progress) -> None:
        self._supervisor = supervisor
        self._plan = plan
        self._progress = progress
        self._seen_file = folder / "seen.json"
        self._polls = folder / "polls.jsonl"
        self._accepted = folder / "accepted.jsonl"
        self._usage = Usage(lambda: [runner.pid for runner in supervisor.group("agent") if runner.pid])
        self._reader: asyncio.subprocess.Process | None = None
        self._probes: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._latency_text = ""
        self._since_s = time.time()
        self._killed_s: float | None = None
        self._recovered: dict[str, float] = {}
        supervisor.listen(self._on_event)

    async def start(self, *, precise: bool) -> None:
        """Start the reader and the sampling of the agent's memory and processor time."""
        found = machine_files.load([self._plan.simulated_file])
        self._probes = latency.probes_of(list(found.machines))
        self._reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cncmon_standalone.proof.reader", str(self._seen_file), *self._probes),
            env=base_environ()
            | {
                "CNCMON_READER_DSN": self._plan.cluster.dsn,
                "CNCMON_READER_INTERVAL_MS": str(READ_MS_PRECISE if precise else READ_MS_CALM),
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGTERM),
        )
        self._tasks = [asyncio.create_task(self._follow_reader()), asyncio.create_task(self._usage.run())]

    def latency_text(self) -> str:
        """Return the latency of the last second for the live line."""
        return self._latency_text

    async def run(self, seconds: float, *, kill: str | None, machines: int, hz: float) -> report.Figures:
        """Measure for so long, kill a part half-way if asked, stop the agent, compare, and return the figures.

        Raises:
            StandaloneError: the comparison could not be made.
        """
        line = live.Line(self._plan, total_s=seconds, extra=self.latency_text, every_s=LINE_S)
        await live.show(self._supervisor, self._progress, line, seconds / 2 if kill else seconds)
        if kill and not self._supervisor.stop_requested.is_set():
            await self._kill(kill)
            await live.show(self._supervisor, self._progress, line, seconds / 2)
        self._progress.end_status()
        self._usage.sample()
        end_ns = time.time_ns()
        self._progress.line("Stopping the agent, then comparing what it accepted with the table")
        async with self._progress.never_silent("draining"):
            await self._supervisor.stop("agent")
            await self._drain()
            await self._stop_reader()
            await self._supervisor.stop("simulator")
        async with self._progress.never_silent("comparing"):
            return await self._figures(end_ns, kill, machines, hz)

    async def stop(self) -> None:
        """End the reader and the sampling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StandaloneError):
            await self._stop_reader()

    async def _kill(self, group: str) -> None:
        """Kill -9 the real processes of a part."""
        runners = self._supervisor.group(group)
        pids = ", ".join(str(runner.pid) for runner in runners)
        self._progress.warn(f"kill -9 {group} (pid {pids})")
        self._killed_s = time.monotonic()
        for runner in runners:
            runner.kill()

    def _on_event(self, event: Event) -> None:
        if self._killed_s is not None and event.state is State.RUNNING:
            self._recovered.setdefault(event.part.group, time.monotonic() - self._killed_s)

    async def _drain(self) -> None:
        """Wait until ingest has committed everything that is in the stream."""
        deadline = time.monotonic() + DRAIN_S_MAX
        told_s = time.monotonic()
        while (waiting := await backlog.of(self._plan.nats_url)) != 0:
            if time.monotonic() > deadline:
                self._progress.warn(f"{waiting} messages are still not committed after {DRAIN_S_MAX:.0f} s")
                return
            if time.monotonic() - told_s > 2:
                told_s = time.monotonic()
                said = "NATS does not answer" if waiting is None else f"{waiting} messages are not committed yet"
                self._progress.line(f"  [dim]… {said}[/]")
            await asyncio.sleep(0.1)

    async def _figures(self, end_ns: int, kill: str | None, machines: int, hz: float) -> report.Figures:
        simulation = self._plan.simulation
        accepted = AcceptedLog(self._accepted, promised_only=kill == "agent")
        period_ns = round(1e9 / hz) if simulation is None else simulation.poll_interval_ms * 1_000_000
        window = compare.window_of(self._polls, end_ns, period_ns, machines)
        connection = await asyncpg.connect(self._plan.cluster.dsn)
        try:
            verdict = await compare.compare(connection, accepted, self._polls, window, compare.as_utc(self._since_s))
        finally:
            await connection.close()
        seen = latency.measure(self._seen_file, accepted, self._polls, window, self._probes)
        notes = [report.OUTAGE_NOTE] if kill else []
        if kill == "agent":
            notes.append(report.KILLED_AGENT_NOTE)
        if window.answered < machines:
            notes.append(f"only {window.answered} of {machines} machines answered a poll")
        cpu_s = self._usage.cpu_s(window.start_ns, window.end_ns)
        return report.Figures(
            acquired=verdict.acquired,
            due=window.due,
            answered=verdict.answered,
            stored=verdict.stored,
            dead_lettered=verdict.dead_lettered,
            lost=verdict.lost,
            duplicated=verdict.duplicated,
            gaps=verdict.gaps,
            mismatched=verdict.mismatched,
            latency_ms=report.latency_document(seen, len(self._probes)),
            agent_rss_mb=round(self._usage.rss_bytes_max / 1e6, 1),
            agent_cpu_us_per_sample=round(cpu_s * 1e6 / verdict.acquired, 1) if verdict.acquired else None,
            accepted=verdict.accepted,
            acquired_percent=round(100 * verdict.acquired / window.due, 2) if window.due else None,
            seconds=round(window.seconds, 2),
            machines=machines,
            hz=hz,
            behaviour=simulation.behaviour if simulation else "",
            seed=simulation.seed if simulation else 0,
            workers=self._plan.workers,
            killed=kill,
            recovery_s=round(self._recovered[kill], 2) if kill and kill in self._recovered else None,
            restarts={r.part.name: r.restarts for r in self._supervisor.runners.values() if r.restarts},
            notes=notes,
            examples=verdict.examples,
        )

    async def _follow_reader(self) -> None:
        reader = self._reader
        if reader is None or reader.stdout is None:
            return
        while line := await reader.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError, KeyError):
                said = msgspec.json.decode(line)
                self._latency_text = f" · queryable after {said['p50_ms']:.0f} ms (p99 {said['p99_ms']:.0f} ms)"

    async def _stop_reader(self) -> None:
        """Have the reader look once more and write down what it saw.

        Raises:
            StandaloneError: it failed.
        """
        reader, self._reader = self._reader, None
        if reader is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader.pid, signal.SIGTERM)
        try:
            status = await asyncio.wait_for(reader.wait(), READER_S_MAX)
        except TimeoutError:
            reader.kill()
            status = await reader.wait()
        if status != 0:
            raise StandaloneError(f"the process that measures the latency failed (exit status {status})")
