"""Retrieval figures against counting by hand, and their invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.retrieval import (
    rank_correlation,
    ranks_of_matches,
    recalls,
    retrieval,
    retrieval_by_query,
    rise_by_query,
)


def random_features(num: int, seed: int, width: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num, width, generator=rng), dim=-1)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_ranks_equal_sorting(num: int, seed: int) -> None:
    similarity = random_features(num, seed) @ random_features(num, seed + 1).T
    order = similarity.argsort(dim=1, descending=True)
    by_sorting = [row.tolist().index(i) for i, row in enumerate(order)]
    assert ranks_of_matches(similarity, torch.arange(num)).tolist() == by_sorting


def test_recall_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.1, 0.8, 0.2]])
    assert recalls(similarity, torch.arange(3), (1, 2, 3)) == {
        "R@1": pytest.approx(100 / 3),
        "R@2": pytest.approx(100),
        "R@3": pytest.approx(100),
    }


def test_ties_never_help() -> None:
    """Features that are all alike know nothing, and score like it."""
    same = torch.ones(20, 1)
    assert retrieval(same, same)["R@mean"] == 0


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(0, 1000))
def test_perfect_features_are_found_in_any_order(num: int, seed: int) -> None:
    features = random_features(num, seed, width=8)
    table = retrieval(features, features)
    assert table["R@mean"] == 100
    assert table["chance R@mean"] == pytest.approx(sum(100 * min(k, num) / num for k in (1, 5, 10)) / 3)
    images, texts = random_features(num, seed), random_features(num, seed + 1)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    assert retrieval(images, texts) == pytest.approx(retrieval(images[order], texts[order]))


def test_each_query_is_ranked_by_itself() -> None:
    texts = random_features(12, 0)
    images = torch.stack([random_features(12, 5), texts], dim=1)
    by_query = retrieval_by_query(images, texts)
    assert by_query[2] == 100
    assert by_query[1] == retrieval(images[:, 0], texts)["R@mean"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=12))
def test_rank_correlation_is_pearsons_of_mean_ranks(values: list[int]) -> None:
    ours = rank_correlation(torch.tensor([values]).double()).item()
    if len(set(values)) == 1:
        assert ours == 0
    else:
        places = {value: [i for i, v in enumerate(sorted(values)) if v == value] for value in values}
        ranks = [sum(places[value]) / len(places[value]) for value in values]
        assert ours == pytest.approx(np.corrcoef(ranks, range(len(values)))[0, 1])


def test_a_rise_is_seen_and_its_absence_too() -> None:
    texts, noise = random_features(60, 0, width=16), random_features(60, 1, width=16)
    rising = torch.stack([(1 - share) * noise + share * texts for share in torch.linspace(0, 0.6, 8)], dim=1)
    rise = rise_by_query(rising, texts, num_resamples=200)
    assert rise["Spearman"] > 0.95
    assert 0.8 < rise["95 % from"] <= rise["Spearman"] <= rise["95 % to"] <= 1
    fall = rise_by_query(rising.flip(1), texts, num_resamples=200)
    assert fall["Spearman"] == pytest.approx(-rise["Spearman"])
    chance = torch.stack([random_features(60, seed, width=16) for seed in range(2, 10)], dim=1)
    none = rise_by_query(chance, texts, num_resamples=200)
    assert none["95 % from"] < 0 < none["95 % to"]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        retrieval(random_features(3, 0), random_features(2, 0))
    with pytest.raises(ValueError, match="not finite"):
        recalls(torch.full((2, 2), torch.nan), torch.arange(2))
