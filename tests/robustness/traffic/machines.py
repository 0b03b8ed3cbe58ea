"""Real Modbus machines: one fleet for each edge, each writing down what it answered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from cncmon_simulator import Settings, running
from cncmon_simulator.fleet import Fleet
from robustness.traffic.services import SITE

TIMEOUT_MS = 60_000
"""A request may take so long. The machines are in the test's process, which has other work and may share the machine:
an answer that an agent waits for no longer is a poll that was answered and never accepted.
"""


@dataclass(frozen=True)
class Machines:
    """The machines of one edge: their documents for the agent, and the log of the polls that they answered."""

    edge: str
    documents: Path
    polls: Path
    fleet: Fleet


@contextlib.asynccontextmanager
async def running_machines(
    folder: Path, edges: Sequence[str], *, each: int, poll_interval_ms: int, seed: int, host: str = "127.0.0.1"
) -> AsyncIterator[list[Machines]]:
    """Run `each` machines for every edge until the block ends."""
    async with AsyncExitStack() as stack:
        made = []
        for number, edge in enumerate(edges):
            documents, polls = folder / f"machines-{edge}.yaml", folder / f"polls-{edge}.jsonl"
            settings = Settings(
                machines=each,
                seed=seed + number,
                site=SITE,
                edge=edge,
                host=host,
                port_base=0,
                control_port=-1,
                name_prefix=f"{edge}-",
                poll_interval_ms=poll_interval_ms,
                poll_log=str(polls),
                machines_file=str(documents),
            )
            simulator = await stack.enter_async_context(running(settings))
            _be_patient(documents)
            made.append(Machines(edge, documents, polls, simulator.fleet))
        yield made
        # The agents have stopped by now: an answer still on its way would be written down after the judgement.
        await asyncio.sleep(0)


def _be_patient(documents: Path) -> None:
    """Let the agent wait `TIMEOUT_MS` for an answer of these machines."""
    found = list(yaml.safe_load_all(documents.read_text()))
    for each in found:
        if each["kind"] == "Machine":
            each["spec"]["connection"]["modbus"]["timeoutMs"] = TIMEOUT_MS
    documents.write_text(yaml.safe_dump_all(found, sort_keys=False))
