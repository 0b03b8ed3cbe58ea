"""What a behaviour is: the values of one machine as a function of the time since its start."""

from typing import Protocol

from cncmon_simulator.register_map import Value


class Behaviour(Protocol):
    """The story of one machine. The same seed and the same time give the same values."""

    display_name: str
    ideal_cycle_time_s: float

    def at(self, t_s: float) -> dict[str, Value]:
        """Return a value for every signal of the profile except poll_counter, as a dict of its own.

        Times must not decrease from one call to the next: a behaviour may forget what is over.
        """
        ...
