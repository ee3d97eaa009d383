"""Deficit order keeps every source within a document of its share; windows cover all, once."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing.mix import SourceRanDryError, Supply, plan_windows
from pipeline.packing.pack_task import order_rows


@dataclass(frozen=True)
class Lengths:
    """A shuffled source of which only the lengths matter."""

    values: np.ndarray
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def lengths_from(self, start: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        taken = self.values[start : start + at_least]
        if self.parts is None:
            return taken, np.zeros(len(taken), np.uint16)
        return taken, self.parts[start : start + at_least]


@st.composite
def supplies(draw: st.DrawFn) -> tuple[list[Supply], int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = draw(st.lists(st.floats(0.05, 10), min_size=1, max_size=5))
    sources = [
        Supply(Lengths(rng.integers(1, 60, int(rng.integers(1, 400)))), weight, is_endless=False)
        for weight in weights
    ]
    return sources, draw(st.integers(1, 90))


def replay(sources: list[Supply], bounds: np.ndarray) -> int:
    return sum(int(supply.items.values[: bounds[index]].sum()) for index, supply in enumerate(sources))


@given(case=supplies())
@settings(deadline=None, max_examples=60)
def test_windows_cover_everything_once(case: tuple[list[Supply], int]) -> None:
    sources, window = case
    plan = plan_windows(sources, window, max_ids=None)
    assert plan.bounds[-1].tolist() == [len(supply.items) for supply in sources]
    sizes = np.diff(plan.bounds, axis=0).sum(axis=1)
    assert np.all(sizes[:-1] == window)
    assert np.all(np.diff(plan.bounds, axis=0) >= 0)
    assert plan.taken[-1].sum() == replay(sources, plan.bounds[-1])


@given(case=supplies())
@settings(deadline=None, max_examples=60)
def test_compiled_and_plain_python_agree(case: tuple[list[Supply], int]) -> None:
    sources, window = case
    compiled = plan_windows(sources, window, max_ids=2000)
    plain = plan_windows(sources, window, max_ids=2000, use_numba=False)
    assert np.array_equal(compiled.bounds, plain.bounds)
    assert np.array_equal(compiled.taken, plain.taken)


@given(
    weights=st.lists(st.floats(0.05, 10), min_size=2, max_size=5),
    seed=st.integers(0, 2**32),
    by=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_prefix_follows_the_weights(weights: list[float], seed: int, by: bool) -> None:
    """After any number of documents each source is within the longest document (or one) of its share."""
    rng = np.random.default_rng(seed)
    sources = [Supply(Lengths(rng.integers(1, 60, 3000)), weight, is_endless=True) for weight in weights]
    plan = plan_windows(sources, 1, max_ids=3000, count_documents=by)
    amounts = plan.bounds if by else plan.taken
    deviations = amounts - amounts.sum(axis=1, keepdims=True) * np.array(weights) / sum(weights)
    assert np.abs(deviations).max() <= (1 if by else 59) * len(weights)
    assert np.all(deviations <= (1 if by else 59) + 1e-6), "none is ahead by more than what it took last"


def test_the_budget_is_never_exceeded_and_nearly_met() -> None:
    sources = [Supply(Lengths(np.full(1000, 50)), 1.0, is_endless=True)]
    assert plan_windows(sources, 7, max_ids=1049).taken[-1].sum() == 1000
    assert plan_windows(sources, 7, max_ids=1050).taken[-1].sum() == 1050


@given(
    sizes=st.lists(st.integers(1, 9), min_size=200, max_size=200),
    window=st.integers(1, 40),
    budget=st.integers(400, 3000),
)
@settings(deadline=None, max_examples=60)
def test_documents_in_parts_are_whole_at_the_budget(sizes: list[int], window: int, budget: int) -> None:
    parts = np.concatenate([np.arange(size, dtype=np.uint16) for size in sizes])
    sources = [
        Supply(Lengths(np.full(len(parts), 10 + index), parts), 1.0 + index, is_endless=True)
        for index in (0, 1)
    ]
    plan = plan_windows(sources, window, max_ids=budget)
    assert plan.taken[-1].sum() <= budget
    for stop in plan.bounds[-1]:
        assert parts[stop] == 0, "the document before is complete"
    assert budget - plan.taken[-1].sum() < 9 * 11, "less is free than the longest document has"
    plain = plan_windows(sources, window, max_ids=budget, use_numba=False)
    assert np.array_equal(plan.bounds, plain.bounds)


def test_an_endless_source_that_ends_is_named() -> None:
    sources = [
        Supply(Lengths(np.full(1000, 10)), 1.0, is_endless=True),
        Supply(Lengths(np.full(10, 10)), 1.0, is_endless=True),
    ]
    with pytest.raises(SourceRanDryError) as caught:
        plan_windows(sources, 50, max_ids=5000)
    assert caught.value.source == 1


def test_rows_are_ordered_towards_the_shares() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    amounts = rng.multinomial(2048, shares, 700) + rng.multinomial(1000, [1 / 3] * 3, 700) - 333
    amounts = np.abs(amounts)
    true_shares = amounts.sum(axis=0) / amounts.sum()
    order = order_rows(amounts, rng)
    assert sorted(order.tolist()) == list(range(700))

    def worst(rows: np.ndarray) -> float:
        taken = np.cumsum(amounts[rows], axis=0)
        return float(np.abs(taken - taken.sum(axis=1, keepdims=True) * true_shares).max())

    assert worst(order) < 0.5 * worst(rng.permutation(700))
    assert worst(order) < 2048
