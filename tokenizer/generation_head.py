"""From codebook vectors to what generates pictures (or trains the codebook).

``GenerationHead`` makes the image embedding that unCLIP draws from, ``ReconstructionHead`` gives back the
Q-Former features and is used by training only. Both start from the same lifted vectors (``decode_task_layer``
of the model).

Dimensions: B images, N codes per image, D width, F width of the generation embedding.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.attention import PreNormBlock
from tokenizer.causal_qformer import CausalQFormer
from tokenizer.config import IMAGE_DOWN_WIDTHS, SeedTokenizerConfig


class TokenDecoder(nn.Module):
    """Learned positions and pre-norm blocks without a final norm."""

    def __init__(self, config: SeedTokenizerConfig) -> None:
        super().__init__()
        width = config.bert_hidden
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_query_token, width))
        self.blocks = nn.ModuleList(
            PreNormBlock(width, config.block_heads, config.block_mlp_hidden, config.block_ln_eps)
            for _ in range(config.decode_depth)
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) fp32 -> the same."""
        x_BND = x_BND + self.pos_embed
        for block in self.blocks:
            x_BND = block(x_BND)
        return x_BND


class ReconstructionHead(TokenDecoder):
    """``blocks`` of the release: Q-Former features from quantised vectors; dead at inference, trained in
    stage 2.
    """


class ImageDown(nn.Module):
    """Three linear layers without bias, ReLU between; decoder of the release."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, *IMAGE_DOWN_WIDTHS)
        self.layers = nn.ModuleList(
            nn.Linear(inner, outer, bias=False) for inner, outer in itertools.pairwise(widths)
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N * 32), token-major."""
        first, *others = self.layers
        x_BND = first(x_BND)
        for layer in others:
            x_BND = layer(F.relu(x_BND))
        return x_BND.flatten(1)


class GenerationHead(nn.Module):
    """Blocks, then ``image_down`` or the one query of a Reverse_Qformer, then a projection to F."""

    def __init__(self, config: SeedTokenizerConfig) -> None:
        super().__init__()
        self.decoder = TokenDecoder(config)
        self.image_down = None if config.use_qformer_image else ImageDown(config.bert_hidden)
        self.reverse_qformer = _reverse_qformer(config) if config.use_qformer_image else None
        self.distill_image_proj = nn.Linear(config.distill_in, config.image_features_dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Lifted codebook vectors (B, N, D) fp32 -> generation embedding (B, F), not normalised."""
        x_BND = self.decoder(x_BND)
        if self.reverse_qformer is not None:
            pooled = self.reverse_qformer(x_BND).squeeze(1)
        else:
            assert self.image_down is not None
            pooled = self.image_down(x_BND)
        out: Tensor = self.distill_image_proj(pooled)
        return out


def _reverse_qformer(config: SeedTokenizerConfig) -> CausalQFormer:
    return CausalQFormer(
        num_queries=1,
        width=config.bert_hidden,
        num_layers=config.reverse_layers,
        num_heads=config.bert_heads,
        mlp_hidden=config.bert_intermediate,
        eps=config.bert_ln_eps,
        image_width=config.bert_hidden,
        cross_layers=config.reverse_cross_layers,
        is_causal=False,
    )
