"""Arrays for decoded frames whose memory is used again once nobody holds them.

Fresh memory is zeroed by the kernel page by page at first touch: 15 to 130 microseconds for a picture (the
latter on a virtual machine), against 2 for the copy itself. Whoever gets an array owns it like any other: it,
or any view of it, keeps its memory; only when the last of them is gone does the memory return here.
"""

import weakref

import numpy as np
from numpy.typing import NDArray

MAX_FREE_BYTES = 128 * 2**20
"""Kept for later: as many pictures as are under way in one process with the usual settings, and more."""


class FrameBuffers:
    """Thread-safe: taking and returning are single operations on a list and a dict."""

    def __init__(self, num_bytes: int) -> None:
        """Buffers of `num_bytes` each, made as they are needed."""
        self.num_bytes = num_bytes
        self.max_free = max(1, MAX_FREE_BYTES // num_bytes)
        self.free: list[memoryview] = []
        self._lent: dict[int, weakref.ref[NDArray[np.uint8]]] = {}

    def copy(self, source: memoryview) -> NDArray[np.uint8]:
        """(len(source),) uint8, a copy of at most `num_bytes` bytes, made without letting go of the GIL."""
        try:
            buffer = self.free.pop()
        except IndexError:
            buffer = memoryview(bytearray(self.num_bytes))
        buffer[: len(source)] = source  # into a bytearray itself this would go by way of another copy
        # Views of this array refer to it and not to the buffer: numpy looks through arrays only.
        owner = np.frombuffer(buffer, np.uint8)
        self._lend(owner, buffer)
        return owner[: len(source)]

    def _lend(self, owner: NDArray[np.uint8], buffer: memoryview) -> None:
        number = id(owner)

        def take_back(_: object) -> None:
            del self._lent[number]
            if len(self.free) < self.max_free:
                self.free.append(buffer)

        self._lent[number] = weakref.ref(owner, take_back)
