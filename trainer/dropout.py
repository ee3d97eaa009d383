"""Dropout as a pure function of (seed, step, row, layer, place), so that ranks and resumes never change it.

The bits are a hash, not the state of a generator: the same on any device, in any batch, compiled or not, and
again when activations are computed a second time.

Dimensions: B sequences, T ids of a sequence, D channels.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF


def row_keys(seed: int, row_indices: Sequence[int]) -> Tensor:
    """One number of 31 bits for each row of a batch: (B,) int64.

    Args:
        seed: of the run's step.
        row_indices: of the rows in the packed set.
    """
    digests = (hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=4).digest() for row in row_indices)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests])


def layer_keys(keys_B: Tensor, layer: int) -> Tensor:
    """Keys of the same rows in one layer: (B,) int64, 32 bits in use."""
    return _mix(keys_B + layer * 0x61C88647 & 0x7FFFFFFF)


def dropout(x_BTD: Tensor, keys_B: Tensor, matrix: int, probability: float) -> Tensor:
    """Zero each value with ``probability`` and scale the others up.

    Args:
        x_BTD: any float dtype.
        keys_B: (B,) int64 of ``layer_keys``.
        matrix: a number for each of a layer's matrices, which draw apart from each other.
        probability: in [0, 1).
    """
    kept = is_kept(keys_B, matrix, x_BTD.shape[1], x_BTD.shape[2], probability)
    return x_BTD * kept * (1 / (1 - probability))


@torch.no_grad()
def is_kept(keys_B: Tensor, matrix: int, length: int, width: int, probability: float) -> Tensor:
    """Which values stay: (B, T, D) bool."""
    device = keys_B.device
    places = torch.arange(length, device=device) + (matrix << 20)
    channels = torch.arange(width, device=device)
    places_BT = _mix(keys_B[:, None] ^ _mix(places))
    bits_BTD = _mix(places_BT[..., None] ^ _mix(channels))
    return bits_BTD >= int(probability * 2**32)


def _mix(bits: Tensor) -> Tensor:
    """A hash of 32-bit numbers in int64, one to one (the finaliser of MurmurHash3).

    In int64 no product overflows. Products of int32 wrap around in eager mode, but in compiled C++ that is
    undefined, and gcc made other masks of them.
    """
    bits = (bits ^ bits >> 16) * (0x85EBCA6B - 2**32) & _32_BITS
    bits = (bits ^ bits >> 13) * (0xC2B2AE35 - 2**32) & _32_BITS
    return bits ^ bits >> 16
