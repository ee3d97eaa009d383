"""The SEED-2 encoder as one writes it down at first: the yardstick of ``benchmarks/encoder.py``.

Eager PyTorch on the official tensors, one operation after the other as the published description has them:
pictures normalised in floats, a convolution for the patches, q, k and v apart, scores, mask and softmax
written out, keys and values projected in every layer, distances as |z|^2 + |e|^2 - 2 z.e. The same arithmetic
as ``tokenizer.seed``, so also an independent check of it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.config import SeedTokenizerConfig
from tokenizer.vit import PIXEL_MEAN, PIXEL_STD


class NaiveEncoder:
    """uint8 pictures -> codes with the official tensors of one checkpoint."""

    def __init__(self, official: Mapping[str, Tensor], config: SeedTokenizerConfig) -> None:
        self.tensors = official
        self.config = config

    def encode(self, images: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 -> (B, N) int64."""
        z = self.encode_features(images).float()
        codebook = self.tensors["quantize.embedding.weight"].float()
        flat = z.reshape(-1, z.shape[-1])
        squares = (flat**2).sum(dim=1, keepdim=True) + (codebook**2).sum(dim=1)
        distances = squares - 2 * torch.einsum("rc,ec->re", flat, codebook)
        return distances.argmin(dim=1).reshape(z.shape[:2])

    def encode_features(self, images: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 -> (B, N, C)."""
        image_features = self._vit(images)
        image_features = self._norm(image_features, "ln_vision", self.config.ln_vision_eps)
        queries = self._qformer(image_features)
        return self._linear(torch.tanh(self._linear(queries, "encode_task_layer.0")), "encode_task_layer.2")

    def _vit(self, images: Tensor) -> Tensor:
        weight = self.tensors["visual_encoder.patch_embed.proj.weight"]
        mean = torch.tensor(PIXEL_MEAN, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD, device=images.device).view(1, 3, 1, 1)
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        bias = self.tensors["visual_encoder.patch_embed.proj.bias"]
        patches = F.conv2d(pixels.to(weight.dtype), weight, bias, stride=self.config.patch_size)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.tensors["visual_encoder.cls_token"].expand(len(x), -1, -1), x], dim=1)
        x = x + self.tensors["visual_encoder.pos_embed"]
        for index in range(self.config.vit_depth):
            x = self._vit_block(x, f"visual_encoder.blocks.{index}")
        return x

    def _vit_block(self, x: Tensor, name: str) -> Tensor:
        eps, width = self.config.vit_ln_eps, self.config.vit_width
        normed = self._norm(x, f"{name}.norm1", eps)
        weight = self.tensors[f"{name}.attn.qkv.weight"]
        q = F.linear(normed, weight[:width], self.tensors[f"{name}.attn.q_bias"])
        k = F.linear(normed, weight[width : 2 * width])
        v = F.linear(normed, weight[2 * width :], self.tensors[f"{name}.attn.v_bias"])
        x = x + self._linear(_attention(q, k, v, self.config.vit_heads, None), f"{name}.attn.proj")
        normed = self._norm(x, f"{name}.norm2", eps)
        return x + self._linear(F.gelu(self._linear(normed, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def _qformer(self, image_features: Tensor) -> Tensor:
        eps, heads = self.config.bert_ln_eps, self.config.bert_heads
        queries = self.tensors["query_tokens"].expand(len(image_features), -1, -1)
        x = self._norm(queries, "Qformer.bert.embeddings.LayerNorm", eps)
        mask = x.new_full((x.shape[1], x.shape[1]), -10_000.0).triu(1) if self.config.causal else None
        for index in range(self.config.bert_layers):
            name = f"Qformer.bert.encoder.layer.{index}"
            x = self._post_norm_attention(x, x, f"{name}.attention", heads, mask)
            if index in self.config.cross_layers:
                x = self._post_norm_attention(x, image_features, f"{name}.crossattention", heads, None)
            hidden = F.gelu(self._linear(x, f"{name}.intermediate_query.dense"))
            hidden = self._linear(hidden, f"{name}.output_query.dense")
            x = self._norm(x + hidden, f"{name}.output_query.LayerNorm", eps)
        return x

    def _post_norm_attention(
        self, x: Tensor, source: Tensor, name: str, heads: int, mask: Tensor | None
    ) -> Tensor:
        q = self._linear(x, f"{name}.self.query")
        k = self._linear(source, f"{name}.self.key")
        v = self._linear(source, f"{name}.self.value")
        out = self._linear(_attention(q, k, v, heads, mask), f"{name}.output.dense")
        return self._norm(x + out, f"{name}.output.LayerNorm", self.config.bert_ln_eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps
        )


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """(B, T, D) queries and (B, S, D) keys and values -> (B, T, D), scores written out."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.einsum("bhts,bshk->bthk", torch.softmax(scores, dim=-1), v).flatten(2)
