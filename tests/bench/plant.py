"""A whole plant for benchmarks of the edge: every part a process of its own, the agent on a disk that counts writes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cncmon_standalone import ports
from testkit.servers import Postgres, Server, running_nats, running_postgres

START_S_MAX = 60.0


class Part:
    """One of our services as a process."""

    def __init__(self, module: str, environ: dict[str, str], log: Path, arguments: tuple[str, ...] = ()) -> None:
        self.log = log
        self.monitor_port = 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                env=os.environ | {"CNCMON_SERVICE_LOG_LEVEL": "info"} | environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def wait_for(self, text: str) -> None:
        """Wait until it logs something."""
        deadline_s = time.monotonic() + START_S_MAX
        while text not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"{self.log.name}: no {text!r} in\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and wait."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Memory:
    """In MB."""

    rss: float
    anonymous: float


def memory(pid: int) -> Memory:
    """Return what a process has in memory now."""
    text = Path(f"/proc/{pid}/status").read_text()
    rss, anonymous = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("VmRSS", "RssAnon"))  # type: ignore[index]
    return Memory(rss / 1024, anonymous / 1024)


def cpu_s(pid: int) -> float:
    """Return user and system time of a process, all its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int) -> int:
    """Return what a process gave to disks: pages, as they were dirtied."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(re.search(r"\nwrite_bytes: (\d+)", text)[1])  # type: ignore[index]


class CountingDisk:
    """An ext4 file system in a file: what the file system wrote to it, journal included, can be told."""

    def __init__(self, folder: Path, mib: int) -> None:
        """Raises SystemExit where this needs rights that we lack."""
        self.path = folder / "disk"
        image = folder / "disk.img"
        self.path.mkdir()
        with image.open("wb") as file:
            file.truncate(mib << 20)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        self._device = run("losetup", "--find", "--show", str(image)).strip()
        run("mount", "-o", "noatime", self._device, str(self.path))

    def written_bytes(self) -> int:
        """Return all that was written to the device."""
        fields = (Path("/sys/block") / Path(self._device).name / "stat").read_text().split()
        return int(fields[6]) * 512

    def close(self) -> None:
        """Unmount it."""
        run("umount", str(self.path))
        run("losetup", "--detach", self._device)


def run(*command: str) -> str:
    """Run a program to its end and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


@dataclass
class Plant:
    """Servers and ingest, which stay; machines and agents, which come and go."""

    folder: Path
    nats: Server
    postgres: Postgres
    parts: list[Part] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    @property
    def nats_environ(self) -> dict[str, str]:
        return {"CNCMON_NATS_SERVERS": f"nats://127.0.0.1:{self.nats.port}"}

    def start(self, module: str, environ: dict[str, str], *arguments: str, name: str = "") -> Part:
        """Start a service and stop it with the plant."""
        log = self.folder / f"{name or module}-{next(self.numbers)}.log"
        part = Part(module, self.nats_environ | environ, log, arguments)
        self.parts.append(part)
        return part

    def ingest(self, workers: int = 2, environ: dict[str, str] | None = None) -> None:
        """Make tables and streams, and start workers: two, so that one decodes while the other waits for a commit."""
        environ = {"CNCMON_INGEST_DATABASE_DSN": self.postgres.dsn} | (environ or {})
        made = self.start("cncmon_ingest.main", environ, "bootstrap", name="bootstrap")
        if made.process.wait(START_S_MAX):
            raise SystemExit(made.log.read_text())
        for _ in range(workers):
            self.start("cncmon_ingest.main", environ, "run", name="ingest")

    def machines(
        self, number: int, hz: float, poll_log: Path | None = None, edge: str | None = None
    ) -> tuple[Part, Path]:
        """Start simulated machines, of an edge of their own where one is named; return process and documents."""
        file = self.folder / f"machines-{next(self.numbers)}.yaml"
        first = ports.pick(number)[0]
        part = self.start(
            "cncmon_simulator.main",
            {
                "CNCMON_SIMULATOR_MACHINES": str(number),
                "CNCMON_SIMULATOR_BEHAVIOUR": "shop",
                "CNCMON_SIMULATOR_SEED": "1",
                "CNCMON_SIMULATOR_PORT_BASE": str(first),
                "CNCMON_SIMULATOR_POLL_INTERVAL_MS": str(round(1000 / hz)),
                "CNCMON_SIMULATOR_CONTROL_PORT": "-1",
                "CNCMON_SIMULATOR_MACHINES_FILE": str(file),
                "CNCMON_SIMULATOR_POLL_LOG": str(poll_log or ""),
            }
            | ({"CNCMON_SIMULATOR_EDGE": edge, "CNCMON_SIMULATOR_NAME_PREFIX": f"{edge}-"} if edge else {}),
        )
        deadline_s = time.monotonic() + START_S_MAX
        while not file.exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return part, file

    def agent(self, machines: Path, data: Path, **settings: object) -> Part:
        """Start an agent on a data folder."""
        port = ports.pick()[0]
        environ = {
            "CNCMON_SERVICE_MONITOR_PORT": str(port),
            "CNCMON_AGENT_MACHINES": str(machines),
            "CNCMON_AGENT_DATA_DIR": str(data),
            "CNCMON_AGENT_CLOCK_TRUSTED": "always",
        } | {f"CNCMON_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
        part = self.start("cncmon_agent.main", environ, name="agent")
        part.monitor_port = port
        return part


@contextlib.contextmanager
def running_plant(folder: Path) -> Iterator[Plant]:
    """Run NATS and PostgreSQL; stop everything that was started on them."""
    # A replay of a day is 43,200 batches and half a gigabyte: the stream holds it until it is stored.
    with running_nats(folder) as nats, running_postgres({"fsync": "on", "shared_buffers": "512MB"}) as postgres:
        plant = Plant(folder, nats, postgres)
        try:
            yield plant
        finally:
            for part in reversed(plant.parts):
                part.stop()
