"""Waiting times between tries: exponential with full jitter, so that many
who failed together don't come back together.
"""

from dataclasses import dataclass, field
from random import Random


@dataclass
class Backoff:
    """Each `next_s()` is drawn from a tenth of a bound to the bound, which doubles from `base_s` to `max_s`.

    Full jitter less its shortest tenth: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    max_s: float
    random: Random = field(default_factory=Random)
    tries: int = 0

    def next_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        bound = min(self.max_s, self.base_s * 2 ** min(self.tries, 30))
        self.tries += 1
        return self.random.uniform(bound / 10, bound)

    def reset(self) -> None:
        """Begin again: the last try succeeded."""
        self.tries = 0
