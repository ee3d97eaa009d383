"""Best fit decreasing: against a brute-force definition, the two implementations equal, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing.best_fit import assign_rows

lengths_lists = st.integers(1, 200).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


def brute_force(lengths: list[int], capacity: int) -> list[int]:
    """Free space of every row, by the definition: the fullest row that has room, else a new one."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            tightest = min(fitting)
            free.remove(tightest)
            free.append(tightest - length)
        else:
            free.append(capacity - length)
    return sorted(free)


@given(case=lengths_lists)
@settings(deadline=None)
def test_rows_are_those_of_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    compiled = assign_rows(np.array(lengths, np.int32), capacity)
    plain = assign_rows(np.array(lengths, np.int32), capacity, use_numba=False)
    assert np.array_equal(compiled, plain)
    filled = np.bincount(compiled, weights=lengths) if lengths else np.empty(0)
    assert sorted((capacity - filled).astype(int).tolist()) == brute_force(lengths, capacity)


def test_implementations_agree_on_many_documents() -> None:
    rng = np.random.default_rng(0)
    for capacity in (64, 2048, 8192):
        lengths = np.clip(rng.lognormal(5, 1, 20_000), 1, capacity).astype(np.int32)
        assert np.array_equal(assign_rows(lengths, capacity), assign_rows(lengths, capacity, use_numba=False))


@pytest.mark.parametrize(("name", "limit"), [("pairs", 0.009), ("text", 0.003), ("interleaved", 0.003)])
def test_padding_at_2048(name: str, limit: float) -> None:
    """The figures of the design, on lengths with the shapes of the three kinds of sources."""
    rng = np.random.default_rng(1)
    lengths = {
        "pairs": 36 + rng.gamma(3, 6, 10_000),
        "text": rng.lognormal(5.5, 1.1, 10_000),
        "interleaved": rng.lognormal(5, 1, 10_000) + 34 * rng.integers(1, 8, 10_000),
    }[name]
    lengths = np.clip(lengths, 3, 2048).astype(np.int32)
    num_rows = int(assign_rows(lengths, 2048).max()) + 1
    assert 1 - lengths.sum() / (num_rows * 2048) < limit


@pytest.mark.parametrize("lengths", [[0], [11], [5, 11]])
def test_lengths_outside_a_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"not all in 1\.\.10"):
        assign_rows(np.array(lengths, np.int32), 10)
