"""Mixing: which source comes next, so that shares follow the weights at every prefix.

Deficit order: always the source that is furthest below its share of what was taken so far. After every
document each source is within about one document of its share, for any weights, without randomness. The
plan cuts the mixed order into windows of some thousand documents; since each source is taken in its shuffled
order, a window is fully described by one range of positions per source, and the plan stays small however
many documents there are.

An item is a document or a part of one that was too long. A budget is kept in whole documents: one is begun
only if all its parts fit, and what was begun is finished, in the next window if need be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.shuffle_task import ShuffledSource
from tokenizer.compiled import compiled


@dataclass(frozen=True)
class WindowPlan:
    """Ranges of shuffled positions: window w takes ``bounds[w, s]`` to ``bounds[w + 1, s]`` of source s."""

    bounds: NDArray[np.int64]
    """(num_windows + 1, num_sources)"""
    taken: NDArray[np.int64]
    """(num_windows + 1, num_sources) ids taken of each source before each window."""
    shares: NDArray[np.float64]
    """(num_sources,) what each source's share of the ids should be, adding up to 1."""

    @property
    def num_windows(self) -> int:
        return len(self.bounds) - 1


@dataclass(frozen=True)
class Supply:
    """What a source has to give."""

    items: ShuffledSource
    weight: float
    is_endless: bool
    """Whether more is needed when its items are used up; otherwise it has then given all it should."""


class SourceRanDryError(Exception):
    """A weighted source has fewer items than the budget needs: render another epoch of it."""

    def __init__(self, source: int) -> None:
        super().__init__(source)
        self.source = source


def plan_windows(
    supplies: Sequence[Supply],
    window_items: int,
    *,
    max_ids: int | None,
    count_documents: bool = False,
    use_numba: bool = True,
) -> WindowPlan:
    """Lay out the windows of a mixture.

    Args:
        max_ids: stop before the first document that would exceed it; None: when every source gave all it has.
        count_documents: weights are shares of documents, not of ids.

    Raises:
        SourceRanDryError: if an endless source ends before ``max_ids``.
    """
    num_sources = len(supplies)
    weights = np.array([supply.weight for supply in supplies], np.float64)
    shares = weights / weights.sum()
    positions, ids = np.zeros(num_sources, np.int64), np.zeros(num_sources, np.int64)
    amounts = np.zeros(num_sources, np.float64)
    bounds, taken = [positions.copy()], [ids.copy()]
    is_endless = np.array([supply.is_endless for supply in supplies])
    budget = np.int64(max_ids if max_ids is not None else np.iinfo(np.int64).max)
    promised = np.zeros(2, np.int64)
    step: Callable[..., Any] = (compiled(_take_window) if use_numba else None) or _take_window
    while True:
        ahead = _look_ahead(supplies, positions, window_items, count_documents)
        counts = np.zeros(num_sources, np.int64)
        dry = int(step(*ahead, is_endless, shares, amounts, ids, counts, promised, window_items, budget))
        if dry >= 0:
            raise SourceRanDryError(dry)
        if counts.sum() == 0:
            break
        positions = positions + counts
        bounds.append(positions.copy())
        taken.append(ids.copy())
        if counts.sum() < window_items:
            break
    return WindowPlan(np.array(bounds), np.array(taken), shares)


def _look_ahead(
    supplies: Sequence[Supply], positions: NDArray[np.int64], window_items: int, count_documents: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """What each source could give to a window, one source behind the other.

    Returns:
        Lengths of the items; ids of the whole document at its first part, -1 at its others; costs; ends of
        the sources.
    """
    columns = [
        _whole_documents(supply.items, position, window_items)
        for supply, position in zip(supplies, positions.tolist(), strict=True)
    ]
    lengths, documents = (np.concatenate(column) for column in zip(*columns, strict=True))
    costs = (documents >= 0).astype(np.float64) if count_documents else lengths.astype(np.float64)
    return lengths, documents, costs, np.cumsum([len(column[0]) for column in columns])


def _whole_documents(
    items: ShuffledSource, position: int, at_least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of items, the last document whole; its ids at its first part, -1 at its others."""
    lengths, parts = items.lengths_from(position, at_least)
    while position + len(lengths) < len(items):
        more_lengths, more_parts = items.lengths_from(position + len(lengths), 1)
        num_more = int(np.argmax(np.append(more_parts, 0) == 0))
        lengths = np.concatenate([lengths, more_lengths[:num_more]])
        parts = np.concatenate([parts, more_parts[:num_more]])
        if num_more < len(more_lengths):
            break
    firsts = np.flatnonzero(parts == 0)
    documents = np.full(len(lengths), -1, np.int64)
    if len(firsts):
        documents[firsts] = np.add.reduceat(lengths, firsts)
    return lengths, documents


def _take_window(  # type: ignore[no-untyped-def]
    lengths, documents, costs, ends, is_endless, shares, amounts, ids, counts, promised, window_items, max_ids
):
    """Take up to ``window_items`` in deficit order; changes ``amounts``, ``ids``, ``counts``, ``promised``.

    ``promised``: ids of all documents begun so far, whole; and 1 when no further one may begin.
    Returns the endless source that had nothing left when it was its turn, or -1.
    """
    num_sources = len(shares)
    total, num_taken = amounts.sum(), 0
    has_ended = np.zeros(num_sources, np.bool_)
    while num_taken < window_items:
        best, best_index, best_deficit = -1, 0, 0.0
        for source in range(num_sources):
            index = (ends[source - 1] if source > 0 else 0) + counts[source]
            if has_ended[source] or (promised[1] and (index >= ends[source] or documents[index] >= 0)):
                continue
            deficit = shares[source] * total - amounts[source]
            if best < 0 or deficit > best_deficit:
                best, best_index, best_deficit = source, index, deficit
        if best < 0:
            return -1
        if best_index >= ends[best]:
            if is_endless[best]:
                return best
            has_ended[best] = True
            continue
        if documents[best_index] >= 0:
            if promised[0] + documents[best_index] > max_ids:
                promised[1] = 1
                continue
            promised[0] += documents[best_index]
        counts[best] += 1
        ids[best] += lengths[best_index]
        amounts[best] += costs[best_index]
        total += costs[best_index]
        num_taken += 1
    return -1
