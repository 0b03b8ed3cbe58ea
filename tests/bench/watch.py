"""What a benchmark of the edge looks at while it runs: the agent's process, and the database from outside."""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from bench.plant import CountingDisk, Memory, Part, Plant, cpu_s, memory, written_bytes


class Watch:
    """Samples an agent's memory, processor time and writes over a while."""

    def __init__(self, part: Part, disk: CountingDisk | None) -> None:
        self._pid = part.process.pid
        self._disk = disk
        self._began = self._read()
        self.memories: list[tuple[float, Memory]] = []

    def _read(self) -> tuple[float, float, int, int]:
        if self._disk is not None:
            os.sync()
        device = self._disk.written_bytes() if self._disk else 0
        return time.monotonic(), cpu_s(self._pid), written_bytes(self._pid), device

    def run(self, seconds: float) -> None:
        """Look twice a second."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.memories.append((time.monotonic(), memory(self._pid)))
            time.sleep(0.5)
        self._ended = self._read()

    def difference(self) -> tuple[float, float, int, int]:
        """Return (seconds, CPU seconds, bytes by the process, bytes to the device)."""
        return tuple(after - before for before, after in zip(self._began, self._ended, strict=True))  # type: ignore[return-value]

    @property
    def rss_max(self) -> float:
        return max(found.rss for _, found in self.memories)

    @property
    def anonymous_max(self) -> float:
        return max(found.anonymous for _, found in self.memories)

    def slope_mb_per_h(self) -> float:
        """Return by how much memory grows, by least squares."""
        times = [at for at, _ in self.memories]
        if len(times) < 3:
            return 0.0
        return statistics.linear_regression(times, [found.rss for _, found in self.memories]).slope * 3600


@contextmanager
def reading(plant: Plant, probes: list[str], seen: Path) -> Iterator[None]:
    """Look into the database from outside, as fast as a dashboard never would."""
    environ = os.environ | {"CNCMON_READER_DSN": plant.postgres.dsn, "CNCMON_READER_INTERVAL_MS": "10"}
    with (plant.folder / "reader.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cncmon_standalone.proof.reader", str(seen), *probes],
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def fetch(plant: Plant, query: str, *arguments: object) -> list[asyncpg.Record]:
    """Ask the database once."""

    async def ask() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(plant.postgres.dsn, command_timeout=600)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(ask())


def machine_names(file: Path) -> list[str]:
    """Return the names of the machines that a plant's file declares."""
    return [
        line.split(": ", 1)[1]
        for document in file.read_text().split("---")
        if "kind: Machine\n" in document
        for line in document.splitlines()
        if line.startswith("  name: ")
    ]
