"""How fast frames are split and decoded, encoded and compressed, on one core.

The ceiling of decoding is msgspec parsing the same bytes to plain objects, without framing, checks or types.
"""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from bench.report import Figure, Report, run
from cncmon_core import frames
from cncmon_core.sample import Sample, decode_sample, encode_sample
from cncmon_ingest import fast, rows

FRAMES = 500
"""As many as an agent puts into a message at most."""


def _samples() -> list[Sample]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Sample(
            machine_id=f"cnc-{number % 100:03}",
            timestamp=start + timedelta(microseconds=number * 100_003),
            temperature=25.1 + number / 7,
            spindle_speed=2500.7 + number,
            x_pos_mm=100.1 + number / 3,
            y_pos_mm=99.9 - number / 3,
            z_pos_mm=10.25,
            feed_rate_actual=1200.5,
            spindle_load_percent=55.5,
            machine_state="running",
            active_program_line=number,
            total_power_kw=7.25,
        )
        for number in range(FRAMES)
    ]


def _rate(work: Callable[[], object], seconds: float) -> float:
    """Return frames a second of `work`, which handles FRAMES: the best of several rounds, since noise only slows."""
    best = 0.0
    for _ in range(5):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 5:
            work()
            count += FRAMES
        best = max(best, count / (time.perf_counter() - start))
    return best


def measure(report: Report, quick: bool) -> None:
    """Measure for 2 s each (quick: half a second)."""
    seconds = 0.5 if quick else 2.0
    samples = _samples()
    encoded = [encode_sample(sample) for sample in samples]
    payload = frames.join(encoded)
    compressed = frames.compress(payload)
    parse = msgspec.json.Decoder().decode

    ceiling = _rate(lambda: [parse(frame) for frame in encoded], seconds)
    decode = _rate(lambda: [decode_sample(frame) for frame in frames.split(payload)[0]], seconds)
    report.add("codec.decode", Figure(decode, "frames/s", ceiling, "msgspec to plain objects", 500_000))
    split = _rate(lambda: frames.split(payload), seconds)
    report.add("codec.split", Figure(split, "frames/s", ceiling, "msgspec to plain objects"))
    encode = _rate(lambda: frames.join([encode_sample(sample) for sample in samples]), seconds)
    report.add("codec.encode", Figure(encode, "frames/s", ceiling, "msgspec to plain objects"))
    unpack = _rate(lambda: frames.decompress(compressed), seconds)
    report.add("codec.decompress", Figure(unpack, "frames/s", ceiling, "msgspec to plain objects"))
    pack = _rate(lambda: [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in samples], seconds)
    report.add("codec.pack_copy_rows", Figure(pack, "rows/s", ceiling, "msgspec to plain objects"))
    _measure_frames_to_rows(report, payload, seconds)
    report.add("codec.bytes_per_sample", Figure(len(payload) / FRAMES, "B"))
    report.add(
        "codec.compressed_bytes_per_sample", Figure(len(compressed) / FRAMES, "B", len(payload) / FRAMES, "plain")
    )


def _measure_frames_to_rows(report: Report, payload: bytes, seconds: float) -> None:
    """Measure what ingest does with each sample of a message, by Python and by the extension."""
    oldest_us, newest_us = rows.microseconds(datetime.min.replace(tzinfo=UTC)), rows.microseconds(datetime.now(UTC))

    def in_python() -> list[bytes]:
        samples = map(decode_sample, frames.split(payload)[0])
        return [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in samples]

    python = _rate(in_python, seconds)
    report.add("codec.frames_to_rows_in_python", Figure(python, "rows/s"))
    if not fast.NATIVE:
        report.not_run.append("codec.frames_to_rows_natively: the extension was not built")
        return
    native = _rate(lambda: fast.pack(payload, oldest_us, newest_us), seconds)
    report.add("codec.frames_to_rows_natively", Figure(native, "rows/s", python, "in Python"))


if __name__ == "__main__":
    sys.exit(run("codec", measure))
