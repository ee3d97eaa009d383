"""The codebook: nearest of E vectors by plain Euclidean distance (no normalisation, no cosine), always in
fp32.

Dimensions: B images, N codes per image, C code width, E codebook entries.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Codebook(nn.Module):
    """E learned vectors of width C; a code is the index of one."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_codes, width))

    def nearest(self, z_BNC: Tensor) -> Tensor:
        """(B, N, C) fp32 -> (B, N) int64 codes; the first index wins a tie."""
        return self._scores(z_BNC.flatten(0, 1)).argmin(dim=-1).view(z_BNC.shape[:-1])

    def distances(self, z_BNC: Tensor) -> Tensor:
        """(B, N, C) fp32 -> (B, N, E) fp32 squared distances to all entries; for tests and reports."""
        scores = self._scores(z_BNC.flatten(0, 1)).view(*z_BNC.shape[:-1], -1)
        return scores + z_BNC.square().sum(dim=-1, keepdim=True)

    def vectors(self, codes_BN: Tensor) -> Tensor:
        """(B, N) integer codes -> (B, N, C) entries."""
        return F.embedding(codes_BN, self.weight)

    def _scores(self, z_RC: Tensor) -> Tensor:
        """(R, C) -> (R, E): squared distance less |z|^2, which is the same for all entries of a row. One
        product.
        """
        assert z_RC.dtype == self.weight.dtype == torch.float32
        return torch.addmm(self.weight.square().sum(dim=-1), z_RC, self.weight.t(), alpha=-2)
