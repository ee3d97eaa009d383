"""Random draws that belong to one document: a pure function of (seed, where the document stands, epoch).

A document draws the same whatever worker handles it, in whatever order, as often as it is done again.
SplitMix64 (Steele, Lea and Flood 2014), a fifth of the cost of seeding a numpy generator per document.
"""

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Draws(Protocol):
    """What templates draw from."""

    def uniform(self) -> float:
        """A number in [0, 1)."""
        ...

    def below(self, limit: int) -> int:
        """An integer in 0..limit - 1."""
        ...


class DocumentDraws:
    """Draws from one 64-bit state."""

    __slots__ = ("_state",)

    def __init__(self, state: int) -> None:
        self._state = state

    def uniform(self) -> float:
        return (self._next() >> 11) * 2.0**-53

    def below(self, limit: int) -> int:
        return self._next() * limit >> 64

    def _next(self) -> int:
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        mixed = self._state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
        return mixed ^ (mixed >> 31)


def stable_hash(*parts: object) -> int:
    """64 bits over the written form of ``parts``, the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_keys(stream: int, first_row: int, num_rows: int) -> NDArray[np.uint64]:
    """One well-mixed key per row: (num_rows,) uint64, distinct within a stream.

    Args:
        stream: 64 bits that stand for (seed, file, epoch), from ``stable_hash``.
    """
    rows = np.arange(first_row + 1, first_row + num_rows + 1, dtype=np.uint64)
    return _mix(np.uint64(stream) + rows * np.uint64(_GOLDEN_GAMMA))


def first_uniforms(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """What ``DocumentDraws(key).uniform()`` gives first, for many keys."""
    return (_mix(keys + np.uint64(_GOLDEN_GAMMA)) >> np.uint64(11)) * np.float64(2.0**-53)


def _mix(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
