"""From typing `make demo` to a page that shows live machines: on a fresh clone with cold caches, and the second time.

The floor of the same run is what the two servers alone need to be made and started.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import Figure, Report, run
from testkit.servers import running_nats, running_postgres

ROOT = Path(__file__).parents[2]
LIVE = re.compile(r"live after")
LIMIT_S = 600.0


def page_alive_s(folder: Path, environ: dict[str, str]) -> float:
    """Run `make demo` in a checkout until it says that the page is live; return the seconds, then stop it."""
    started = time.monotonic()
    process = subprocess.Popen(
        ["make", "demo", "ARGS=--no-browser --api-port 8490"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if LIVE.search(line):
                return time.monotonic() - started
            if time.monotonic() - started > LIMIT_S:
                break
        raise SystemExit(f"make demo never said that its page is live:\n{''.join(said[-30:])}")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def _floor_s() -> float:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder)), running_postgres():
        return time.monotonic() - started


def measure(report: Report, quick: bool) -> None:
    """Measure both starts (quick: the second alone)."""
    floor_s = _floor_s()
    limit = "both servers alone"
    if quick:
        report.not_run.append("startup.cold")
    else:
        with tempfile.TemporaryDirectory(prefix="cncmon-cold-") as name:
            clone = Path(name) / "clone"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            caches = {
                variable: f"{name}/{variable}" for variable in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "npm_config_cache")
            }
            cold_s = page_alive_s(clone, os.environ | caches)
            report.add("startup.cold", Figure(cold_s, "s", floor_s, limit, 240, "at_most"))
            shutil.rmtree(clone)
    page_alive_s(ROOT, dict(os.environ))
    report.add("startup.second", Figure(page_alive_s(ROOT, dict(os.environ)), "s", floor_s, limit, 20, "at_most"))


if __name__ == "__main__":
    sys.exit(run("startup", measure))
