"""Retrieval on pairs: how often the right caption is among the k nearest of a picture, and the other way
round.

Dimensions: I images, T texts, N queries, E joint width.
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


def retrieval(image_IE: Tensor, text_TE: Tensor, ks: Sequence[int] = RANKS) -> dict[str, float]:
    """Both ways for I = T pairs in the same order; ``R@mean`` is the mean of all, as the paper's table has
    it.

    Args:
        image_IE: (I, E) normalised features.
        text_TE: (I, E) normalised features.
        ks: how many nearest count.

    Returns:
        percent by ``i2t R@k``, ``t2i R@k``, ``R@mean``; ``chance R@mean`` is what random features give.
    """
    if len(image_IE) != len(text_TE) or not len(image_IE):
        raise ValueError(f"retrieval needs pairs, got {len(image_IE)} images and {len(text_TE)} texts")
    similarity = image_IE.double() @ text_TE.double().T
    targets = torch.arange(len(similarity))
    table = {f"i2t {name}": value for name, value in recalls(similarity, targets, ks).items()}
    table |= {f"t2i {name}": value for name, value in recalls(similarity.T, targets, ks).items()}
    mean = sum(table.values()) / len(table)
    chance = sum(100 * min(k, len(targets)) / len(targets) for k in ks) / len(ks)
    return table | {"R@mean": mean, "chance R@mean": chance}


def retrieval_by_query(image_INE: Tensor, text_TE: Tensor) -> Mapping[int, float]:
    """R@mean of each query alone: (I, N, E) and (I, E) -> {1-based query index: percent}."""
    return {
        index + 1: retrieval(image_INE[:, index], text_TE)["R@mean"] for index in range(image_INE.shape[1])
    }
