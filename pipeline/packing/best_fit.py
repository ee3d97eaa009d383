"""Best-fit-decreasing: documents, longest first, each into the fullest row that still has room for it.

Where that needs more rows than the ids alone would, ``exact_fill`` tries to do with fewer. With numba eight
million documents a second (``benchmarks.packing``); without it the same algorithm in plain Python gives
the same rows, a tenth as fast. Both keep rows in stacks by free space; numba finds the tightest non-empty
stack by a bitmap of 64-bit words, Python by bisection.
"""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.exact_fill import fill_rows
from tokenizer.compiled import compiled


def assign_rows(lengths: NDArray[np.int32], capacity: int, *, use_numba: bool = True) -> NDArray[np.int32]:
    """Row of each document: (num_documents,) int32, in as few rows as best fit or exact filling find.

    Args:
        lengths: (num_documents,) int32, each in 1..capacity.
        capacity: ids of a row.

    Raises:
        ValueError: if a document is empty or longer than a row.
    """
    rows = best_fit_decreasing(lengths, capacity, use_numba=use_numba)
    fewest = -(-int(lengths.sum(dtype=np.int64)) // capacity)
    if count_rows(rows) == fewest:
        return rows
    exact = fill_rows(lengths, capacity)
    return exact if count_rows(exact) < count_rows(rows) else rows


def count_rows(rows: NDArray[np.int32]) -> int:
    return int(rows.max()) + 1 if len(rows) else 0


def best_fit_decreasing(
    lengths: NDArray[np.int32], capacity: int, *, use_numba: bool = True
) -> NDArray[np.int32]:
    """Row of each document: (num_documents,) int32, rows numbered 0.. in the order they were opened."""
    if not len(lengths):
        return np.empty(0, np.int32)
    if int(lengths.min()) < 1 or int(lengths.max()) > capacity:
        raise ValueError(
            f"lengths {int(lengths.min())}..{int(lengths.max())} are not all in 1..{capacity}; split before"
        )
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    pack = (compiled(_pack_loop) if use_numba else None) or _pack_python
    rows = np.empty(len(lengths), np.int32)
    rows[order] = pack(lengths[order].astype(np.int32), capacity)
    return rows


def _pack_python(lengths: NDArray[np.int32], capacity: int) -> NDArray[np.int32]:
    """Rows of documents that are sorted by falling length."""
    stacks: dict[int, list[int]] = {}
    free_spaces: list[int] = []  # sorted keys of the non-empty stacks
    rows = np.empty(len(lengths), np.int32)
    num_rows = 0
    for index, length in enumerate(lengths.tolist()):
        place = bisect_left(free_spaces, length)
        if place == len(free_spaces):
            row, free = num_rows, capacity
            num_rows += 1
        else:
            free = free_spaces[place]
            row = stacks[free].pop()
            if not stacks[free]:
                del stacks[free], free_spaces[place]
        rows[index] = row
        left = free - length
        if left:
            if left not in stacks:
                stacks[left] = []
                insort(free_spaces, left)
            stacks[left].append(row)
    return rows


def _pack_loop(lengths: NDArray[np.int32], capacity: int) -> NDArray[np.int32]:
    """The same in a form that numba compiles: stacks are linked lists, ``tops`` by free space."""
    num_words = capacity // 64 + 1
    occupied = np.zeros(num_words, np.uint64)
    tops = np.full(capacity + 1, -1, np.int32)
    below = np.full(len(lengths), -1, np.int32)
    rows = np.empty(len(lengths), np.int32)
    num_rows = 0
    one = np.uint64(1)
    for index in range(len(lengths)):
        length = lengths[index]
        free = -1
        word = length >> 6
        bits = occupied[word] & ~((one << np.uint64(length & 63)) - one)
        while True:
            if bits != 0:
                lowest = bits & (~bits + one)
                position = 0
                while lowest > one:
                    lowest >>= one
                    position += 1
                free = (word << 6) + position
                break
            word += 1
            if word == num_words:
                break
            bits = occupied[word]
        if free < 0:
            row, free = num_rows, capacity
            num_rows += 1
        else:
            row = tops[free]
            tops[free] = below[row]
            if tops[free] < 0:
                occupied[free >> 6] &= ~(one << np.uint64(free & 63))
        rows[index] = row
        left = free - length
        if left > 0:
            below[row] = tops[left]
            tops[left] = row
            occupied[left >> 6] |= one << np.uint64(left & 63)
    return rows
