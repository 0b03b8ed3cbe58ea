"""What people see while parts start, run and stop. No thread of its own: the supervisor forks."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import rich.progress
from rich.console import Console
from rich.markup import escape

from cncmon_standalone.supervise.part import Event, State

QUIET_S_MAX = 2.0


class Progress:
    """Prints one line for each part that became ready, died, or stopped, and a sign of life in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_s = time.monotonic()
        self._status = ""
        self._unread = False
        self._busy: dict[str, float] = {}
        self._seen: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Tell an event of the supervisor."""
        name = event.part.name
        match event.state:
            case State.STARTING | State.STOPPING:
                self._busy[name] = time.monotonic()
            case State.RUNNING | State.DONE:
                self._busy.pop(name, None)
                again = ", running again" if name in self._seen else ""
                self._seen.add(name)
                self.ok(name, event.part.title + again, event.seconds)
            case State.RESTARTING:
                self.warn(f"{name} {event.text}")
            case State.STOPPED:
                if self._busy.pop(name, None) is not None:
                    self.ok(name, event.text, event.seconds)
            case _:
                pass

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be overwritten."""
        return self._console.is_terminal

    def ok(self, name: str, text: str, seconds: float | None = None) -> None:
        """Print what has been done."""
        took = "" if seconds is None else f" [dim]{seconds:.1f} s[/]"
        self.line(f"  [green]√[/] {escape(name):<10} {escape(text)}{took}")

    def warn(self, text: str) -> None:
        """Print what went wrong and is taken care of."""
        self.line(f"  [yellow]‼[/] {escape(text)}")

    def line(self, markup: str = "") -> None:
        """Print a line above the status line."""
        self._clear()
        with self._stopping_when_unread():
            self._console.print(markup, highlight=False, soft_wrap=True)
        self._said_s = time.monotonic()
        self._draw()

    def status(self, text: str) -> None:
        """Show a line that is overwritten; where there is no terminal, print it."""
        if self.is_terminal:
            self._clear()
            self._status = text
            self._draw()
        elif text:
            self.line(escape(text))

    def end_status(self) -> None:
        """Keep the status line as it stands and go on below it."""
        if self._status:
            self._status = ""
            self._write("\n")

    def _clear(self) -> None:
        if self._status:
            self._write("\r\x1b[K")

    def _draw(self) -> None:
        if self._status:
            self._write(self._status[: max(20, self._console.width - 1)])

    def _write(self, text: str) -> None:
        with self._stopping_when_unread():
            self._console.file.write(text)
            self._console.file.flush()

    @contextlib.contextmanager
    def _stopping_when_unread(self) -> Iterator[None]:
        """Stop in order when the terminal is closed or the reading program leaves (`cncmon demo | head`)."""
        try:
            yield
        except OSError:
            if not self._unread:
                self._unread = True
                os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.asynccontextmanager
    async def never_silent(self, doing: str) -> AsyncIterator[None]:
        """While this lasts, say at least every two seconds what is being waited for."""
        task = asyncio.create_task(self._keep_talking(doing))
        try:
            yield
        finally:
            task.cancel()

    async def _keep_talking(self, doing: str) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(max(0.05, self._said_s + QUIET_S_MAX - 0.2 - time.monotonic()))
            if time.monotonic() - self._said_s >= QUIET_S_MAX - 0.25:
                what = f"{doing}: {', '.join(self._busy)}" if self._busy else doing
                self.line(f"  [dim]… {escape(what)}, {time.monotonic() - began:.0f} s[/]")


@contextlib.contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[..., None]]:
    """Show on a terminal how far long work is; yield what is called with how many pieces more are done, 1 if unsaid."""
    shown = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(), console=for_people(to_stderr=True), transient=True,
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with shown:
        task = shown.add_task(doing, total=total)
        yield lambda pieces=1: shown.advance(task, pieces)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the caller decide; rich would exit on the spot and leave processes behind."""
        # So that Python's own flush at exit finds somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise BrokenPipeError


def for_people(*, to_stderr: bool = False) -> Console:
    """Return the console for progress and tables; standard error where standard output is for programs."""
    return _Console(file=sys.stderr if to_stderr else sys.stdout, highlight=False)
