"""The two layers that every part of the tokenizer is built of: multi-head self-attention and a GELU MLP.

Weights of linear layers decide the compute dtype (fp32, bf16, fp16); what comes in is cast to it, and callers
add the result to a residual stream that stays fp32. Queries, keys and values come from one product.

Dimensions: B images, T tokens, D width, H heads, K head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection; rows of ``qkv`` are ordered q, k, v, then head."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.0)
        """Of the attention weights; off unless training turns it on (``set_dropout``)."""

    def forward(self, x_BTD: Tensor, is_causal: bool = False, mask_BT: Tensor | None = None) -> Tensor:
        """(B, T, D) of any float dtype -> (B, T, D) in the dtype of the weights.

        ``mask_BT`` (B, T) bool: False marks padding that nothing attends to.
        """
        qkv_BT = self.qkv(x_BTD.to(self.qkv.weight.dtype))
        q_BHTK, k_BHTK, v_BHTK = qkv_BT.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(
            attend(q_BHTK, k_BHTK, v_BHTK, is_causal, mask_BT, drop_probability(self.dropout))
        )
        return out


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) of any float dtype -> (B, T, D) in the dtype of the weights."""
        out: Tensor = self.fc2(gelu(self.fc1(x_BTD.to(self.fc1.weight.dtype))))
        return out


class PreNormBlock(nn.Module):
    """Transformer block of the image encoder and of the decoder: x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, mlp_hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) fp32 residual stream -> the same shape and dtype."""
        x_BTD = add_branch(x_BTD, self.attn(self.norm1(x_BTD)))
        return add_branch(x_BTD, self.mlp(self.norm2(x_BTD)))


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) GELU; in the memory of ``x`` unless its gradient needs that, for new memory is what takes
    the time on a CPU.
    """
    out: Tensor = F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)
    return out


def add_branch(x: Tensor, branch: Tensor) -> Tensor:
    """``x + branch``, in the memory of ``branch`` where that has the right dtype; same shapes."""
    return branch.add_(x) if branch.dtype == x.dtype else x + branch


def attend(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    is_causal: bool = False,
    mask_BS: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention with scale K^-0.5; (B, H, T, K) -> (B, T, H*K).

    A causal mask here is -inf. The published code adds -10000, which is the same: exp underflows to exactly 0
    in fp32.
    """
    mask_B11S = None if mask_BS is None else mask_BS[:, None, None]
    out_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_B11S, dropout_p=dropout, is_causal=is_causal
    )
    return out_BHTK.transpose(1, 2).flatten(2)


def drop_probability(dropout: nn.Dropout) -> float:
    """Probability that a dropout layer drops now: zero in eval mode."""
    return dropout.p if dropout.training else 0.0


def set_dropout(module: nn.Module, probability: float) -> None:
    """Drop with this probability in every dropout layer under ``module``, when in training mode."""
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = probability


def cast_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the linear layers under ``module`` to ``dtype`` in place; norms and tokens keep fp32."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.to(dtype)
