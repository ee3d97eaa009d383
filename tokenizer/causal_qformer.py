"""The causal Q-Former: learned queries read the image features, each seeing only the queries before it.

A post-norm BERT (exact GELU) whose even layers also attend to the image. Keys and values of all those layers
depend on the image features alone and come from one product at the start.

Dimensions: B images, N queries, D width, T image tokens, C layers with cross-attention, H heads, K head
width.
"""

import torch
from torch import Tensor, nn

from tokenizer.attention import Mlp, SelfAttention, attend, drop_probability


class CrossAttention(nn.Module):
    """Queries attend to keys and values that were projected elsewhere."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x_BND: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """(B, N, D) of any float dtype -> (B, N, D) in the dtype of the weights."""
        q_BND = self.query(x_BND.to(self.query.weight.dtype))
        q_BHNK = q_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out: Tensor = self.proj(attend(q_BHNK, k_BHTK, v_BHTK, dropout=drop_probability(self.dropout)))
        return out


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention in some layers, MLP; each followed by LayerNorm(x + .)."""

    def __init__(self, width: int, num_heads: int, mlp_hidden: int, eps: float, has_cross: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, num_heads) if has_cross else None
        self.cross_norm = nn.LayerNorm(width, eps=eps) if has_cross else None
        self.mlp = Mlp(width, mlp_hidden)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(0.0)
        """Of every branch before it is added; off unless training turns it on."""

    def forward(self, x_BND: Tensor, kv_BHTK: tuple[Tensor, Tensor] | None, is_causal: bool) -> Tensor:
        """(B, N, D) fp32 -> the same; ``kv_BHTK`` are this layer's image keys and values, if it reads the
        image.
        """
        x_BND = self.attention_norm(x_BND + self.dropout(self.attention(x_BND, is_causal)))
        if self.cross is not None and self.cross_norm is not None:
            assert kv_BHTK is not None
            x_BND = self.cross_norm(x_BND + self.dropout(self.cross(x_BND, *kv_BHTK)))
        out: Tensor = self.mlp_norm(x_BND + self.dropout(self.mlp(x_BND)))
        return out


class CausalQFormer(nn.Module):
    """Queries -> LayerNorm -> layers. The Reverse_Qformer of the training code is one with a single query."""

    def __init__(
        self,
        *,
        num_queries: int,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_hidden: int,
        eps: float,
        image_width: int,
        cross_layers: tuple[int, ...],
        is_causal: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.cross_layers = cross_layers
        self.queries = nn.Parameter(torch.empty(1, num_queries, width))
        self.embed_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(0.0)
        self.cross_kv = nn.Linear(image_width, 2 * len(cross_layers) * width)
        """Rows: for each layer that reads the image, keys then values."""
        self.layers = nn.ModuleList(
            QFormerLayer(width, num_heads, mlp_hidden, eps, index in cross_layers)
            for index in range(num_layers)
        )

    def forward(self, image_BTD: Tensor) -> Tensor:
        """Image features (B, T, image_width) of any float dtype -> (B, N, D) fp32."""
        kv_BT = self.cross_kv(image_BTD.to(self.cross_kv.weight.dtype))
        kv_CBHTK = kv_BT.unflatten(-1, (len(self.cross_layers), 2, self.num_heads, -1)).permute(
            2, 3, 0, 4, 1, 5
        )
        image_kv = {layer: (kv[0], kv[1]) for layer, kv in zip(self.cross_layers, kv_CBHTK, strict=True)}
        x_BND: Tensor = self.dropout(self.embed_norm(self.queries).expand(len(image_BTD), -1, -1))
        for index, layer in enumerate(self.layers):
            x_BND = layer(x_BND, image_kv.get(index), self.is_causal)
        return x_BND
