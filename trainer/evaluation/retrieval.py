"""Retrieval on pairs: how often the right caption is among the k nearest of a picture, and the other way
round.

Dimensions: I images, T texts, N queries, E joint width, S resamples.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10)


def ranks_of_matches(similarity_QG: Tensor, targets_Q: Tensor) -> Tensor:
    """Rank (0 = first) of each query's match in the gallery.

    Args:
        similarity_QG: (Q, G) float, higher is nearer.
        targets_Q: (Q,) int64, the match's place in the gallery.

    Returns:
        (Q,) int64. Among equal similarities the match comes last: ties never help.
    """
    if not similarity_QG.isfinite().all():
        raise ValueError("retrieval: a similarity is not finite, so nothing can be ranked")
    own_Q1 = similarity_QG.gather(1, targets_Q[:, None])
    return (similarity_QG >= own_Q1).sum(dim=1) - 1


def recalls(similarity_QG: Tensor, targets_Q: Tensor, ks: Sequence[int] = RANKS) -> dict[str, float]:
    """``{"R@1": ...}`` in percent: queries whose match is among the k nearest."""
    ranks = ranks_of_matches(similarity_QG, targets_Q)
    return {f"R@{k}": 100 * (ranks < k).double().mean().item() for k in ks}


def retrieval(image_IE: Tensor, text_TE: Tensor) -> dict[str, float]:
    """Both ways for I = T pairs in the same order; ``R@mean`` is the mean of all, as the paper's table has
    it.

    Args:
        image_IE: (I, E) normalised features.
        text_TE: (I, E) normalised features.

    Returns:
        percent by ``i2t R@k``, ``t2i R@k``, ``R@mean``; ``chance R@mean`` is what random features give.
    """
    if len(image_IE) != len(text_TE) or not len(image_IE):
        raise ValueError(f"retrieval needs pairs, got {len(image_IE)} images and {len(text_TE)} texts")
    similarity = image_IE.double() @ text_TE.double().T
    targets = torch.arange(len(similarity))
    table = {f"i2t {name}": value for name, value in recalls(similarity, targets).items()}
    table |= {f"t2i {name}": value for name, value in recalls(similarity.T, targets).items()}
    mean = sum(table.values()) / len(table)
    chance = sum(100 * min(k, len(targets)) / len(targets) for k in RANKS) / len(RANKS)
    return table | {"R@mean": mean, "chance R@mean": chance}


def retrieval_by_query(image_INE: Tensor, text_TE: Tensor) -> Mapping[int, float]:
    """R@mean of each query alone: (I, N, E) and (I, E) -> {1-based query index: percent}."""
    return {
        index + 1: retrieval(image_INE[:, index], text_TE)["R@mean"] for index in range(image_INE.shape[1])
    }


def rise_by_query(image_INE: Tensor, text_TE: Tensor, num_resamples: int = 2000) -> dict[str, float]:
    """Whether retrieval rises with the query index: rank correlation (Spearman) of index and R@mean.

    The interval is a bootstrap over pairs: each resample weighs the pairs anew, the gallery stays whole.

    Args:
        image_INE: (I, N, E) normalised features of each query.
        text_TE: (I, E) normalised features of the captions, in the same order.
        num_resamples: of the pairs.

    Returns:
        ``Spearman`` in -1..1, and the bounds of its 95 % interval.
    """
    targets = torch.arange(len(text_TE))
    hits_NI = []
    for features_IE in image_INE.double().unbind(dim=1):
        similarity = features_IE @ text_TE.double().T
        ranks = torch.stack([ranks_of_matches(s, targets) for s in (similarity, similarity.T)])
        hits_NI.append(torch.stack([(ranks < k).double() for k in RANKS]).mean(dim=(0, 1)))
    means_IN = torch.stack(hits_NI, dim=1)
    rng = torch.Generator().manual_seed(0)
    picks_SI = torch.randint(len(targets), (num_resamples, len(targets)), generator=rng)
    resampled_SN = torch.stack([means_IN[picks_I].mean(dim=0) for picks_I in picks_SI])
    low, high = rank_correlation(resampled_SN).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    own = rank_correlation(means_IN.mean(dim=0, keepdim=True)).item()
    return {"Spearman": own, "95 % from": low, "95 % to": high}


def rank_correlation(values_SN: Tensor) -> Tensor:
    """Spearman's correlation of the place 0..N-1 with each row's values; equal values share a rank: (S,)."""
    less_SNN = (values_SN[:, :, None] > values_SN[:, None]).double()
    equal_SNN = (values_SN[:, :, None] == values_SN[:, None]).double()
    ranks_SN = less_SNN.sum(dim=2) + (equal_SNN.sum(dim=2) - 1) / 2
    ranks_SN = ranks_SN - ranks_SN.mean(dim=1, keepdim=True)
    places_N = torch.arange(values_SN.shape[1], dtype=torch.float64)
    places_N = places_N - places_N.mean()
    norm_S = ranks_SN.norm(dim=1) * places_N.norm()
    return torch.where(norm_S > 0, ranks_SN @ places_N / norm_S.clamp(min=1e-12), 0.0)
