"""Best fit decreasing: against a brute-force definition, the two implementations equal, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing.best_fit import assign_rows, best_fit_decreasing, count_rows
from pipeline.packing.exact_fill import fill_rows

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
    compiled = best_fit_decreasing(np.array(lengths, np.int32), capacity)
    plain = best_fit_decreasing(np.array(lengths, np.int32), capacity, use_numba=False)
    assert np.array_equal(compiled, plain)
    filled = np.bincount(compiled, weights=lengths) if lengths else np.empty(0)
    assert sorted((capacity - filled).astype(int).tolist()) == brute_force(lengths, capacity)


def test_implementations_agree_on_many_documents() -> None:
    rng = np.random.default_rng(0)
    for capacity in (64, 2048, 8192):
        lengths = np.clip(rng.lognormal(5, 1, 20_000), 1, capacity).astype(np.int32)
        assert np.array_equal(assign_rows(lengths, capacity), assign_rows(lengths, capacity, use_numba=False))


@given(case=lengths_lists)
@settings(deadline=None)
def test_exact_filling_places_every_document_within_the_rows(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    rows = fill_rows(np.array(lengths, np.int32), capacity)
    filled = np.bincount(rows, weights=lengths) if lengths else np.empty(0)
    assert np.all(filled <= capacity)
    assert np.all(filled > 0)
    assert count_rows(assign_rows(np.array(lengths, np.int32), capacity)) <= count_rows(rows)


def test_exact_filling_finds_what_best_fit_misses() -> None:
    lengths = np.repeat([4, 3], [20, 40]).astype(np.int32)  # 4 + 3 + 3 in each row; best fit puts 4 + 4
    assert count_rows(best_fit_decreasing(lengths, 10)) == 24
    assert count_rows(assign_rows(lengths, 10)) == 20


def draw_lengths(name: str, num_documents: int) -> np.ndarray:
    """Lengths with the shapes of the kinds of sources; emoji names are the shortest captions of all."""
    rng = np.random.default_rng(1)
    lengths = {
        "pairs": 36 + rng.gamma(3, 6, num_documents),
        "emoji": 39 + rng.integers(0, 10, num_documents),
        "text": rng.lognormal(5.5, 1.1, num_documents),
        "interleaved": rng.lognormal(5, 1, num_documents) + 34 * rng.integers(1, 8, num_documents),
    }[name]
    return np.clip(lengths, 3, 2048).astype(np.int32)


@pytest.mark.parametrize(
    ("name", "num_documents", "limit"),
    [
        ("pairs", 10_000, 0.009),
        ("emoji", 10_000, 0.009),
        ("text", 10_000, 0.003),
        ("interleaved", 10_000, 0.003),
        ("pairs", 32_768, 0.002),
        ("emoji", 32_768, 0.002),
    ],
)
def test_padding_at_2048(name: str, num_documents: int, limit: float) -> None:
    lengths = draw_lengths(name, num_documents)
    num_rows = count_rows(assign_rows(lengths, 2048))
    assert 1 - lengths.sum() / (num_rows * 2048) < limit


@pytest.mark.parametrize("lengths", [[0], [11], [5, 11]])
def test_lengths_outside_a_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"not all in 1\.\.10"):
        assign_rows(np.array(lengths, np.int32), 10)
