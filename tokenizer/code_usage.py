"""How broadly a codebook is used, and what to do about entries that are not: k-means to start, re-seeding on
the way.

Dimensions: E codebook entries, R vectors, C code width.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizer.codebook import Codebook

KMEANS_CHUNK = 8192
"""Vectors whose distances are held at once."""


@dataclass(frozen=True)
class UsageFigures:
    """Use of a codebook over a number of codes."""

    used: int
    """Entries chosen at least once."""
    perplexity: float
    """Exponential of the entropy: the number of entries a uniform use would have."""
    total: int
    """Codes counted."""


def usage_figures(counts_E: Tensor) -> UsageFigures:
    """Figures of (E,) integer counts."""
    total = int(counts_E.sum())
    share = counts_E[counts_E > 0].double() / max(total, 1)
    return UsageFigures(int((counts_E > 0).sum()), float(torch.exp(-(share * share.log()).sum())), total)


def count_codes(codes: Tensor, num_codes: int) -> Tensor:
    """Uses of each code, (E,) int64, in integer codes of any shape of all ranks; every rank must call it."""
    counts_E = torch.bincount(codes.detach().flatten(), minlength=num_codes)
    if dist.is_initialized():
        dist.all_reduce(counts_E)
    return counts_E


class CodeUsage(nn.Module):
    """Running counts of chosen codes over all ranks.

    Every rank holds the sum, in a buffer: a checkpoint keeps the buffers of one rank, and DDP hands those of
    the first to all.
    """

    counts_E: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("counts_E", torch.zeros(num_codes, dtype=torch.int64))

    def record(self, counts_E: Tensor) -> None:
        """Add what ``count_codes`` gave."""
        self.counts_E += counts_E

    def reset(self) -> None:
        """Start a new window."""
        self.counts_E.zero_()


def kmeans(vectors_RC: Tensor, num_centres: int, iterations: int, rng: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random vectors; a centre that loses all its vectors moves to a random one.

    Returns:
        (num_centres, C) fp32. With fewer vectors than centres, vectors are repeated with a little noise.
    """
    num_vectors = len(vectors_RC)
    if num_vectors < num_centres:
        picks = torch.randint(num_vectors, (num_centres,), generator=rng)
        noise = torch.randn(num_centres, vectors_RC.shape[1], generator=rng)
        return vectors_RC[picks] + 0.01 * vectors_RC.std() * noise
    centres_EC = vectors_RC[torch.randperm(num_vectors, generator=rng)[:num_centres]].clone()
    for _ in range(iterations):
        nearest_R = _nearest(vectors_RC, centres_EC)
        counts_E = torch.bincount(nearest_R, minlength=num_centres)
        sums_EC = torch.zeros_like(centres_EC).index_add_(0, nearest_R, vectors_RC)
        picks_E = torch.randint(num_vectors, (num_centres,), generator=rng)
        means_EC = sums_EC / counts_E.clamp(min=1)[:, None]
        centres_EC = torch.where((counts_E > 0)[:, None], means_EC, vectors_RC[picks_E])
    return centres_EC


def _nearest(vectors_RC: Tensor, centres_EC: Tensor) -> Tensor:
    norms_E = centres_EC.square().sum(dim=1)
    parts = torch.split(vectors_RC, KMEANS_CHUNK)
    return torch.cat([torch.addmm(norms_E, part, centres_EC.T, alpha=-2).argmin(dim=1) for part in parts])


@torch.no_grad()
def reseed_dead(codebook: Codebook, counts_E: Tensor, vectors_RC: Tensor, rng: torch.Generator) -> Tensor:
    """Move entries that nothing chose onto random recent vectors, the same on all ranks.

    Args:
        codebook: changed in place.
        counts_E: (E,) uses in the window, of all ranks.
        vectors_RC: (R, C) fp32, recent vectors before quantisation (rank 0's are taken).
        rng: CPU generator.

    Returns:
        (M,) int64, the entries that moved; their optimiser state is stale.
    """
    dead_M = (counts_E == 0).nonzero().flatten()
    picks_M = torch.randint(len(vectors_RC), (len(dead_M),), generator=rng)
    seeds_MC = vectors_RC[picks_M.to(vectors_RC.device)].to(codebook.weight)
    if dist.is_initialized():
        dist.broadcast(seeds_MC, src=0)
    codebook.weight[dead_M.to(codebook.weight.device)] = seeds_MC
    return dead_M
