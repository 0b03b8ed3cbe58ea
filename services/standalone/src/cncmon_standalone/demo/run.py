"""The demo from start to finish: folder, parts, link, live line, proof, summary."""

import os
import shutil
import sys
import time

import msgspec
from rich.markup import escape

from cncmon_agent.config.store import FILE as LAST_GOOD
from cncmon_core import machine_files
from cncmon_core.machine import Machine
from cncmon_simulator import Settings
from cncmon_simulator.fleet import name_of
from cncmon_standalone import console, folder, live, session, state, system
from cncmon_standalone.configure import at_start
from cncmon_standalone.demo import report
from cncmon_standalone.demo.measure import Measurement
from cncmon_standalone.demo.options import Options
from cncmon_standalone.duration import show as show_duration
from cncmon_standalone.errors import InUseError, PartError, StopRequestedError
from cncmon_standalone.ports import pick
from cncmon_standalone.supervise.supervisor import Supervisor

DATA_S_MAX = 30.0
"""All machines have sent a sample by then, or something is wrong."""
FAILED = 1


async def run(options: Options) -> int:
    """Run the demo; return the exit status.

    Raises:
        StandaloneError: what is wrong and what to do; the data folder is kept.
    """
    progress = console.Progress(console.for_people(to_stderr=options.as_json))
    root = options.data.absolute() if options.data else folder.make_temporary()
    data = folder.DataFolder(root)
    data.make()
    keep = options.data is not None
    try:
        with data.locked(), state.announced(data):
            status = await _Demo(options, data, progress).run()
        keep = keep or status != 0
    except StopRequestedError:
        progress.line("Stopped before everything was running.")
        return StopRequestedError.exit_status
    except InUseError:
        raise  # nothing was started, nothing is worth keeping
    except BaseException:
        keep = True
        progress.line(f"  Data and logs are kept: [bold]{escape(str(data.logs))}[/]")
        raise
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    progress.line(
        f"Data and logs are kept in {escape(str(root))}"
        if keep
        else f"[dim]Removed the temporary folder {escape(str(root))}[/]"
    )
    return status


class _Demo:
    def __init__(self, options: Options, data: folder.DataFolder, progress: console.Progress) -> None:
        self._options = options
        self._progress = progress
        proof = data.root / "proof"
        shutil.rmtree(proof, ignore_errors=True)
        proof.mkdir()
        measured = options.seconds is not None
        nats_port, postgres_port, control_port = pick(3, avoid=[options.api_port])
        self._plan = system.Plan(
            folder=data,
            workers=options.workers,
            api_port=options.api_port,
            nats_port=nats_port,
            postgres_port=postgres_port,
            simulation=system.Simulation(
                machines=options.machines,
                hz=options.hz,
                behaviour=options.behaviour,
                seed=options.seed,
                control_port=control_port,
                # Only where it is compared: without a time limit the logs would fill the disk.
                poll_log=proof / "polls.jsonl" if measured else None,
            ),
            accepted_log=proof / "accepted.jsonl" if measured else None,
        )
        for edge in self._plan.edges:
            # Of a demo on the same folder: its machines listened on other ports.
            (self._plan.agent_folder(edge) / LAST_GOOD).unlink(missing_ok=True)
        self._proof = proof
        self._began = time.monotonic()

    async def run(self) -> int:
        options = self._options
        self._progress.line(
            f"[bold]CNC Monitor demo[/]: {options.machines} simulated machines ({options.behaviour}) "
            f"at {options.hz:g} Hz, data in {escape(str(self._plan.folder.root))}"
        )
        figures = await session.run(self._plan, "demo", self._progress, self._body)
        if figures is None:
            self._progress.line("Stopped.")
            return 0
        if options.as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n")
            sys.stdout.flush()
        else:
            report.show(figures, self._progress)
        return 0 if figures.holds else FAILED

    async def _body(self, supervisor: Supervisor) -> report.Figures | None:
        measurement = Measurement(supervisor, self._plan, self._proof, self._progress)
        async with self._progress.never_silent("starting"):
            await supervisor.wait_ready(["bootstrap", "simulator"])
            await at_start.configure(self._plan.nats_url, self._machines(), self._progress)
            await measurement.start(precise=self._options.seconds is not None)
            await supervisor.wait_ready()
            await self._wait_for_data(supervisor)
        took_s = time.monotonic() - self._began
        self._progress.line(f"\n  [bold green]{self._plan.api_url}[/]   live after {took_s:.1f} s, Ctrl-C stops\n")
        if self._options.seconds is None:
            self._progress.line(f"  Switch a machine off, for half a minute:\n  [dim]{self._off_command()}[/]\n")
        self._open_browser()
        try:
            if self._options.seconds is None:
                line = live.Line(self._plan, extra=measurement.latency_text)
                await live.show(supervisor, self._progress, line)
                self._progress.end_status()
                await self._say_goodbye()
                return None
            return await measurement.run(
                self._options.seconds, kill=self._options.kill, machines=self._options.machines, hz=self._options.hz
            )
        finally:
            await measurement.stop()

    def _machines(self) -> dict[str, Machine]:
        found = machine_files.load([self._plan.simulated_file])
        if found.problems:
            raise PartError("; ".join(map(str, found.problems)))
        return found.machines

    async def _wait_for_data(self, supervisor: Supervisor) -> None:
        """Return once every machine shows a sample on the page."""
        wanted = self._options.machines
        deadline = time.monotonic() + DATA_S_MAX + 1 / self._options.hz
        while True:
            listed = await live.machines_of(self._plan.api_port) or []
            shown = sum(1 for machine in listed if machine.get("last_sample"))
            if shown >= wanted:
                return
            if time.monotonic() > deadline:
                raise PartError(
                    f"only {shown} of {wanted} machines have reached the page. "
                    f"The logs say why: {self._plan.folder.logs}/agent.log and ingest.log"
                )
            if await supervisor.sleep(0.1):
                raise StopRequestedError("stopped before the machines were shown")

    def _off_command(self) -> str:
        simulated = Settings(machines=self._options.machines, behaviour=self._options.behaviour)
        machine = name_of(simulated, 0)
        return f'curl -d \'{{"fault": "off", "for_s": 30}}\' {self._plan.simulator_url}/machines/{machine}/faults'

    def _open_browser(self) -> None:
        has_display = sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
        if self._options.browser and not self._options.as_json and has_display and sys.stdout.isatty():
            _open(self._plan.api_url)

    async def _say_goodbye(self) -> None:
        stored = await live.stored_samples(self._plan.cluster.dsn)
        ran = time.monotonic() - self._began
        self._progress.line(f"Stopping. {stored or 0:,} samples stored in {show_duration(ran)}.")


def _open(url: str) -> None:
    import subprocess

    # A process of its own: a browser that writes to the terminal or hangs is no business of ours.
    subprocess.Popen(
        [sys.executable, "-m", "webbrowser", url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
