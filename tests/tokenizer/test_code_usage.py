"""Use of a codebook: counts, perplexity, k-means, re-seeding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.code_usage import CodeUsage, count_codes, kmeans, reseed_dead, usage_figures
from tokenizer.codebook import Codebook


@given(st.integers(1, 50), st.integers(1, 9))
def test_uniform_use_has_as_many_as_it_uses(num_used: int, times: int) -> None:
    counts = torch.zeros(64, dtype=torch.int64)
    counts[:num_used] = times
    figures = usage_figures(counts)
    assert figures.used == num_used
    assert figures.total == num_used * times
    assert figures.perplexity == pytest.approx(num_used)


def test_perplexity_of_a_skewed_use() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert usage_figures(torch.tensor([3, 0, 1])).perplexity == pytest.approx(math.exp(entropy))


def test_counts_add_up_and_reset() -> None:
    usage = CodeUsage(8)
    usage.record(count_codes(torch.tensor([[1, 1], [7, 0]]), 8))
    usage.record(count_codes(torch.tensor([7]), 8))
    assert usage.counts_E.tolist() == [1, 2, 0, 0, 0, 0, 0, 2]
    usage.reset()
    assert usage.counts_E.sum() == 0


def test_kmeans_finds_separate_clusters() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(5, 3, generator=rng)
    vectors = (centres[:, None] + 0.01 * torch.randn(5, 200, 3, generator=rng)).flatten(0, 1)
    found = kmeans(vectors, 12, 10, rng)
    assert torch.cdist(centres, found).amin(dim=1).max() < 0.05


def test_kmeans_lowers_the_error_of_random_centres() -> None:
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 8, generator=rng)

    def error(iterations: int) -> float:
        found = kmeans(vectors, 32, iterations, torch.Generator().manual_seed(1))
        return torch.cdist(vectors, found).amin(dim=1).square().mean().item()

    assert error(10) < 0.85 * error(0)


def test_kmeans_of_few_vectors_stays_near_them() -> None:
    vectors = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    found = kmeans(vectors, 6, 3, torch.Generator().manual_seed(0))
    assert found.shape == (6, 2)
    assert torch.cdist(found, vectors).amin(dim=1).max() < 0.5


def test_only_unused_entries_move_and_onto_recent_vectors() -> None:
    codebook = Codebook(6, 4)
    torch.nn.init.ones_(codebook.weight)
    vectors = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    moved = reseed_dead(codebook, torch.tensor([3, 0, 1, 0, 0, 9]), vectors, torch.Generator().manual_seed(1))
    assert moved.tolist() == [1, 3, 4]
    assert (codebook.weight[[0, 2, 5]] == 1).all()
    assert torch.cdist(codebook.weight[moved].detach(), vectors).amin(dim=1).max() < 1e-6
