"""What `cncmon demo` can be asked for. Imports little: a wrong option is told at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cncmon_standalone.errors import UnusableError


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line. seconds None: until Ctrl-C."""

    machines: int
    hz: float
    behaviour: Literal["shop", "reference"]
    seed: int
    seconds: float | None
    as_json: bool
    kill: Literal["agent", "ingest", "nats", "postgres"] | None
    data: Path | None
    browser: bool
    workers: int
    api_port: int

    def check(self) -> None:
        """Raise UnusableError where options don't go together."""
        if self.seconds is None and (self.as_json or self.kill):
            raise UnusableError(f"{'--json' if self.as_json else '--kill'} needs --for, such as --for 30s")
