"""Causal attention over packed documents: one function, three backends, chosen by what the device can do.

``reference`` runs SDPA document by document on any device and is the oracle of the others. On torch 2.13
neither FlexAttention's backward nor ``varlen_attn`` runs on the CPU; on CUDA ``varlen_attn`` is the fast
path in half precision and FlexAttention serves where it cannot (fp32).

Dimensions: T ids of the flattened batch, H query heads, G key/value heads, K head width.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    backend: str | None = None,
) -> Tensor:
    """Causal attention that never crosses a document.

    Args:
        q_THK: queries, rotated; any float dtype.
        k_TGK: keys, rotated; G divides H (grouped-query attention).
        v_TGK: values.
        cu_seqlens: (num_documents + 1,) int32, first 0, last T; equal neighbours are empty documents.
        max_length: no document is longer, in ids.
        backend: a key of ``BACKENDS``; chosen from device and dtype when None.

    Returns:
        (T, H, K), the dtype of ``q_THK``.
    """
    return BACKENDS[backend or choose_backend(q_THK)](q_THK, k_TGK, v_TGK, cu_seqlens, max_length)


def choose_backend(q: Tensor) -> str:
    """The fastest backend that runs forward and backward for tensors such as ``q``."""
    if not q.is_cuda:
        return "reference"
    if q.dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(q.device) >= (8, 0):
        return "varlen"
    return "flex"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_by_document(
    q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, max_length: int
) -> Tensor:
    """SDPA once per document: no mask is built, so the cost is the sum of squares of the lengths."""
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    groups = q_THK.shape[1] // k_TGK.shape[1]
    if groups > 1:
        k_TGK, v_TGK = (x.repeat_interleave(groups, dim=1) for x in (k_TGK, v_TGK))
    documents = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q_THK, k_TGK, v_TGK)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0] for q, k, v in documents
    ]
    # The CPU kernel writes (T, H, K) in memory: joined this way round, nothing is copied once more.
    return torch.cat([output.transpose(0, 1) for output in outputs])


def attend_varlen(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, max_length: int) -> Tensor:
    """FlashAttention's variable-length kernel: CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        q_THK,
        k_TGK,
        v_TGK,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        window_size=(-1, 0),
        enable_gqa=q_THK.shape[1] != k_TGK.shape[1],
    )
    assert isinstance(output, Tensor)
    return output


def attend_flex(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, max_length: int) -> Tensor:
    """FlexAttention under a block mask of documents: CUDA in any precision; on the CPU forward only."""
    num_ids = q_THK.shape[0]
    document_T = document_index(cu_seqlens, num_ids)

    def same_document_before(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_T[query] == document_T[key]) & (query >= key)

    from torch.nn.attention.flex_attention import create_block_mask

    mask = create_block_mask(same_document_before, None, None, num_ids, num_ids, device=q_THK.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THK, k_TGK, v_TGK))
    output = _flex_attention(q.is_cuda)(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return output[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _flex_attention(is_compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Tensor] = flex_attention
    return torch.compile(attend) if is_compiled else attend


def document_index(cu_seqlens: Tensor, num_ids: int) -> Tensor:
    """Which document each id belongs to: (num_ids,) int64, empty documents counted."""
    ids = torch.arange(num_ids, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, ids, right=True) - 1


BACKENDS: dict[str, Backend] = {
    "reference": attend_by_document,
    "varlen": attend_varlen,
    "flex": attend_flex,
}
