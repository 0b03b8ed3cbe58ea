"""Fills an agent's data folder as an outage of a given length would: the production log and batches, only faster."""

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cncmon_agent.batch import make
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.epochs import Epochs
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import spool_settings

MACHINES = 25
HZ = 10
BATCH_FRAMES = 500
"""Two seconds of 25 machines at 10 Hz: what an agent cuts while it is offline."""

_FRAME = (
    '{"machine_id":"gen-%02d","timestamp":"%s%06dZ","temperature":%.1f,"spindle_speed":%.1f,"x_pos_mm":%.3f,'
    '"y_pos_mm":%.3f,"z_pos_mm":%.3f,"feed_rate_actual":%.1f,"spindle_load_percent":%.1f,"machine_state":"running",'
    '"active_program_line":%d,"total_power_kw":%.2f,"mode":"AUTOMATIC","program":"O1234","part_count":%d,'
    '"tool_number":%d,"extras":{"alarm_code":0,"door_open":false,"feed_override_percent":100}}'
)


class Filled(NamedTuple):
    """What lies in the folder now."""

    epoch: int
    batches: int
    samples: int
    bytes: int


def fill(data: Path, seconds: float, settings: AgentSettings) -> Filled:
    """Write `seconds` of samples that end now, 250 a second, and leave the folder as a stopped agent does."""
    data.mkdir(parents=True, exist_ok=True)
    epochs = Epochs(data, settings.site, settings.edge)
    spool = Spool(data / "spool", spool_settings(settings))
    log = spool.begin(epochs.current.epoch)
    number = int(seconds * MACHINES * HZ) // BATCH_FRAMES
    began = datetime.now(UTC) - timedelta(seconds=seconds)
    rng = random.Random(1)
    walks = [[rng.uniform(0, 500) for _ in range(3)] for _ in range(MACHINES)]
    polls = BATCH_FRAMES // MACHINES
    size = 0
    for index in range(number):
        frames = [
            _frame(rng, walks, machine, index * polls + poll, began)
            for poll in range(polls)
            for machine in range(MACHINES)
        ]
        created_ms = int((began.timestamp() + index * polls / HZ) * 1000)
        batch = make(epochs.current.epoch, index + 1, index * BATCH_FRAMES, "samples", frames, 1, created_ms)
        if not log.append(batch):
            raise SystemExit("the log took no more")
        size += len(batch.data)
        if index % 64 == 63:
            _sync(spool)
    _sync(spool)
    epochs.current.last_seq, epochs.current.last_samples = number, number * BATCH_FRAMES
    epochs.save()
    spool.close()
    return Filled(epochs.current.epoch, number, number * BATCH_FRAMES, size)


def _frame(rng: random.Random, walks: list[list[float]], machine: int, poll: int, began: datetime) -> bytes:
    walk = walks[machine]
    axis = poll % 3
    walk[axis] += rng.uniform(-3, 3)
    micros = (poll * 1_000_000) // HZ
    moment = began + timedelta(seconds=micros // 1_000_000)
    micros_of_second = (moment.microsecond + micros) % 1_000_000
    return (
        _FRAME
        % (
            machine,
            moment.strftime("%Y-%m-%dT%H:%M:%S."),
            micros_of_second,
            40 + walk[0] % 7,
            8000 + walk[1] % 30,
            *walk,
            1200 + walk[2] % 40,
            55 + walk[0] % 20,
            poll % 400,
            7 + walk[1] % 2,
            poll,
            1 + poll // 3000 % 12,
        )
    ).encode()


def _sync(spool: Spool) -> None:
    if (work := spool.sync_work()) is not None:
        work.run()
        spool.synced(work)


def main() -> None:
    """Fill a folder by hand: `python -m bench.backlog FOLDER HOURS`."""
    import sys

    began_s = time.monotonic()
    print(fill(Path(sys.argv[1]), float(sys.argv[2]) * 3600, AgentSettings()), f"{time.monotonic() - began_s:.1f} s")


if __name__ == "__main__":
    main()
