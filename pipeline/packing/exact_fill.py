"""Rows filled to the last id, by subset sums over the lengths at hand.

Best-fit-decreasing leaves half the shortest document free in every row: 1 % of 2048 ids for captions of 40
ids, of which nothing shorter than 36 exists. Here each row takes, longest first, only documents after which
the rest of the row can still be filled exactly. What can be filled is a set of sums, kept as the bits of one
integer: adding a length is a shift, so that plain Python handles half a million documents a second.
"""

import numpy as np
from numpy.typing import NDArray


def fill_rows(lengths: NDArray[np.int32], capacity: int) -> NDArray[np.int32]:
    """Row of each document: (num_documents,) int32, as ``best_fit.assign_rows``.

    Sums assume that every length at hand may be used again and again; a row that this optimism leaves
    without an exact filling looks once at what is really left, then takes the longest that fits.
    """
    order = np.argsort(lengths, kind="stable")
    queues: dict[int, list[int]] = {}
    for index in order[::-1].tolist():
        queues.setdefault(int(lengths[index]), []).append(index)
    rows = np.empty(len(lengths), np.int32)
    available = sum(1 << length for length in queues)
    reversed_sums, is_stale, num_rows, num_updates = _reversed_sums(queues, capacity), False, 0, 0
    while available:
        room = capacity
        while available:
            fitting = available & ((1 << (room + 1)) - 1)
            exact = fitting & (reversed_sums >> (capacity - room))
            if not exact and fitting and is_stale and num_updates <= num_rows // 8:
                reversed_sums, is_stale = _reversed_sums(queues, capacity), False
                num_updates += 1
                exact = fitting & (reversed_sums >> (capacity - room))
            length = (exact or fitting).bit_length() - 1
            if length < 0:
                break
            rows[queues[length].pop()] = num_rows
            if not queues[length]:
                del queues[length]
                available ^= 1 << length
                is_stale = True
            room -= length
        num_rows += 1
    return rows


def _reversed_sums(queues: dict[int, list[int]], capacity: int) -> int:
    """Bit ``capacity - s`` is set where s is a sum of the lengths, each used any number of times."""
    sums = 1 << capacity
    for length in queues:
        step = length
        while step <= capacity:
            sums |= sums >> step
            step *= 2
    return sums
