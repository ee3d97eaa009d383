"""The places in a decode process's memory where it puts frames, lent to whoever takes the frames.

A picture is 150 kB: copied into memory of its own it would be read and written once more, and fresh memory is
cleared by the kernel page by page. So an array that is handed out lies in the worker's memory itself. Whoever
gets it owns it like any other: it, or any view of it, keeps its place; only when the last of them is gone is
the place used again. A place is never waited for: when enough are lent, further frames are copied.
"""

import itertools
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LENT_BYTES = 32 * 2**20
"""Most that is lent of one worker's memory: 222 pictures, more than its share of what is under way. Memory
that was never used takes none."""


def num_places(num_slots: int, place_bytes: int) -> int:
    """Places for so many tasks in the worker's hands, and for what is lent meanwhile."""
    return num_slots + max(1, LENT_BYTES // place_bytes)


class FramePlaces:
    """The owner's account of them: a place is free, a task's, or lent.

    One thread takes places and hands out frames; they may come back in any.

    Args:
        places: memory of equal size.
        num_slots: most places that tasks have at a time.
    """

    def __init__(self, places: Sequence[memoryview], num_slots: int) -> None:
        self.free = list(range(len(places)))
        self._places = places
        self._max_lent = len(places) - num_slots
        self._numbers = itertools.count()
        self._lent: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        """By a number of its own, not by place: a place may be lent again before the account of its last
        loan is closed, in a thread that just then lost the interpreter."""

    def take(self) -> int:
        """A place for a task; there always is one."""
        return self.free.pop()

    def give_back(self, place: int) -> None:
        """It was for a task without frames."""
        self.free.append(place)

    def hand_out(self, place: int, num_bytes: int) -> NDArray[np.uint8]:
        """(num_bytes,) uint8, the first bytes of a task's place."""
        # Views of this array refer to it and not to the memory: numpy looks through arrays only.
        owner = np.frombuffer(self._places[place][:num_bytes], np.uint8)
        if len(self._lent) >= self._max_lent:
            copy = owner.copy()
            self.free.append(place)
            return copy

        number = next(self._numbers)

        def take_back(_: object) -> None:
            self.free.append(place)  # first: what is not lent must be free
            del self._lent[number]

        self._lent[number] = weakref.ref(owner, take_back)
        return owner
