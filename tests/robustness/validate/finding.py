"""The judgement on one scenario."""

import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from cncmon_standalone.proof.compare import Verdict, Window, compare
from robustness.validate.excuses import Excuses, examine
from robustness.validate.promised import Promised

ALWAYS = Window(0, 2**63 - 1)
LONG_AGO = datetime(1960, 1, 1, tzinfo=UTC)
"""Before every stamp that an edge without a clock could give."""


@dataclass(frozen=True)
class Finding:
    """sent: samples that agents accepted, promised or not, in `batches`. answered: polls that machines answered."""

    verdict: Verdict
    excuses: Excuses
    sent: int
    batches: int
    answered: int

    @property
    def holds(self) -> bool:
        """Whether every promise was kept, and every excuse is true."""
        return self.verdict.holds and not self.excuses.wrong

    @property
    def complaints(self) -> str:
        """The first few complaints in words."""
        return "; ".join([*self.verdict.examples, *self.excuses.wrong[:10]])


async def judge(
    dsn: str,
    accepted: Collection[Path],
    polls: Iterable[Path],
    scratch: Path,
    *,
    killed: Collection[int] = (),
    lost: Mapping[int, int] | None = None,
) -> Finding:
    """Compare what machines answered and agents accepted with the table, field by field.

    killed, lost: as in `Promised`. scratch: folder for a file as large as all poll logs.

    Raises:
        TornLogError, PollLogError, OSError, asyncpg.PostgresError: the comparison could not be made.
    """
    logs = Promised([path for path in accepted if path.exists()], killed, lost)
    sent = batches = 0
    for line in logs.batches():
        sent += len(line.samples)
        batches += 1
    everything = joined(polls, scratch / "polls-all.jsonl")
    connection = await asyncpg.connect(dsn)
    try:
        verdict = await compare(connection, logs, everything, ALWAYS, LONG_AGO)
        excuses = await examine(connection, logs, {*killed, *(lost or {})})
    finally:
        await connection.close()
    return Finding(verdict, excuses, sent, batches, verdict.answered)


def joined(paths: Iterable[Path], into: Path) -> Path:
    """Write poll logs one behind the other into one, and return that."""
    with into.open("wb") as out:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, out)
    return into
