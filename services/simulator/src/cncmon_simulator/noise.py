"""Noise that is a function of (seed, machine, time), so that the moment of a poll does not change the story."""

import hashlib
from statistics import NormalDist
from typing import Final

STEPS_PER_S: Final = 100
"""The noise holds for 10 ms; two polls within one step see the same."""

CHANNELS: Final = 5
"""Independent values that one hash gives: 12 bits each of 64."""

_MASK: Final = (1 << 64) - 1
_NORMALS: Final = tuple(NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096))


class Noise:
    """White noise of one machine."""

    def __init__(self, seed: int, machine: str) -> None:
        digest = hashlib.blake2b(f"{seed}/{machine}".encode(), digest_size=8).digest()
        self._salt = int.from_bytes(digest)

    def at(self, t_s: float) -> int:
        """Return 64 random bits of the 10 ms step that holds `t_s`, for `normal`.

        The mix is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
        """
        z = (self._salt + int(t_s * STEPS_PER_S) * 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)


def normal(bits: int, channel: int) -> float:
    """Return a standard normal value (mean 0, sigma 1) from the bits of `Noise.at`; channels 0 to 4 are independent."""
    return _NORMALS[bits >> (12 * channel) & 4095]
