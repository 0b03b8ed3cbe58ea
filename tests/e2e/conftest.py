"""A real demo for the whole folder, and pages of a real Chromium on it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from cncmon_standalone.embedded.process import die_with_parent
from testkit.parts import browser as chromium
from testkit.ports import free_port
from testkit.waiting import WAIT_S_MAX

expect.set_options(timeout=WAIT_S_MAX * 1000)

CNCMON = str(Path(sys.executable).parent / "cncmon")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@dataclass(frozen=True)
class Demo:
    """A running demo. `status()` is what `cncmon status --json` says now."""

    url: str
    data: Path

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            [CNCMON, "status", "--json", "--data", str(self.data)], capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pid(self, name: str) -> int:
        pid: int = next(process["pid"] for process in self.status()["processes"] if process["name"] == name)
        return pid

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a part and its children stand still while this lasts: connections stay open, and silent."""
        pid = self.pid(name)
        pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        # Its supervisor may have given it up meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Five shop machines, as `make demo` runs them."""
    data = Path("/var/tmp") / f"cncmon-e2e-{os.getpid()}"
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [CNCMON, "demo", "--no-browser", "--data", str(data), "--api-port", str(port), "--seed", "1"],
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    try:
        _wait_until_live(process, log)
        yield Demo(f"http://127.0.0.1:{port}", data)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WAIT_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
        subprocess.run(["rm", "-rf", str(data)], check=True)


def _wait_until_live(process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(int(WAIT_S_MAX * 10)):
        if "live after" in log.read_text():
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the demo did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield running
        await running.close()


class Opened:
    """A page that must not complain: errors of its scripts and of the browser's console end the test."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._on_console)

    def _on_console(self, message: ConsoleMessage) -> None:
        # A server that was killed on purpose is told by the browser too.
        if message.type == "error" and "net::ERR" not in message.text and "503" not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
async def wide(browser: Browser) -> AsyncIterator[Page]:
    """A page of 1440 × 900 in English."""
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB")
    opened = Opened(await context.new_page())
    yield opened.page
    assert opened.complaints == []
    await context.close()


@pytest.fixture
async def phone(browser: Browser) -> AsyncIterator[Page]:
    """A phone of 390 × 844 in German."""
    context = await browser.new_context(
        viewport={"width": 390, "height": 844}, locale="de-DE", has_touch=True, is_mobile=True
    )
    opened = Opened(await context.new_page())
    yield opened.page
    assert opened.complaints == []
    await context.close()
