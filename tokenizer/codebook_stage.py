"""Training stage 2: codebook and both decoders over a frozen causal Q-Former (the paper's sections 3.1.2 and
3.1.3).

    picture -> frozen Q-Former -> encode_task_layer -> z -> nearest code -> straight-through ->
    decode_task_layer
        -> reconstruction head    2   * (1 - cosine) to the Q-Former's output
        -> generation head        0.5 * MSE to the embedding that unCLIP draws from
    z against its code            5   * VQ-VAE's loss with stop-gradients

The published code has two quirks that change gradients but no loss value or need a closer look:
taming-transformers' ``legacy`` weighting puts ``beta`` on the codebook term instead of the commitment, and
the frozen Q-Former drops at random in training (it is never put in eval mode), so codes and targets are
noisy. ``CodebookConfig()`` does neither, ``RELEASED`` does both.

Dimensions: B images, N codes per image, C code width, D Q-Former width, F generation embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.attention import set_dropout
from tokenizer.seed import SeedModel


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Settings of stage 2."""

    vq_weight: float = 5.0
    reconstruction_weight: float = 2.0
    generation_weight: float = 0.5
    beta: float = 0.25
    """Weight of the commitment term (of the codebook term with ``legacy_vq``)."""
    legacy_vq: bool = False
    """``beta`` weighs the codebook term instead, as in the published code."""
    dropout: float = 0.1
    """In the Reverse_Qformer, which is trained; with ``encoder_dropout`` also in the frozen Q-Former."""
    encoder_dropout: bool = False
    """The frozen Q-Former drops at random too, as in the published code."""

    def __post_init__(self) -> None:
        for name in ("vq_weight", "reconstruction_weight", "generation_weight", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"codebook.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"codebook.dropout must be in [0, 1), got {self.dropout}")


RELEASED = CodebookConfig(legacy_vq=True, encoder_dropout=True)
"""What the published training code does."""


@dataclass(frozen=True)
class Quantized:
    """One batch through stage 2; the three losses are weighted and add up to ``loss``."""

    loss: Tensor
    loss_vq: Tensor
    loss_reconstruction: Tensor
    loss_generation: Tensor
    z_BNC: Tensor
    """Before quantisation."""
    codes_BN: Tensor
    recon_BND: Tensor
    generation_BF: Tensor


class CodebookModel(nn.Module):
    """A tokenizer whose image encoder and Q-Former are frozen, with the loss of stage 2."""

    def __init__(self, model: SeedModel, stage: CodebookConfig) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        for part in (model.vit, model.ln_vision, model.qformer):
            part.requires_grad_(False)
        set_dropout(model.qformer, stage.dropout)
        set_dropout(model.generation_head, stage.dropout)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CodebookModel":
        """Frozen parts stay in eval mode, except the Q-Former under ``encoder_dropout``."""
        super().train(mode)
        self.model.vit.eval()
        self.model.qformer.train(mode and self.stage.encoder_dropout)
        return self

    @torch.no_grad()
    def encode(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, N, D) fp32, the causal embeddings."""
        out: Tensor = self.model.qformer(self.model.ln_vision(self.model.vit(images_B))).float()
        return out

    def forward(self, images_B: Tensor, target_BF: Tensor) -> Quantized:
        """One batch.

        Args:
            images_B: (B, img_size, img_size, 3) uint8 RGB.
            target_BF: (B, F) fp32, what the generation head learns (CLIP image embeddings, not normalised).
        """
        return self.quantize(self.encode(images_B), target_BF)

    def quantize(self, features_BND: Tensor, target_BF: Tensor) -> Quantized:
        """The trained part, from causal embeddings (B, N, D)."""
        model, stage = self.model, self.stage
        z_BNC = model.encode_task_layer(features_BND).float()
        with torch.no_grad(), torch.autocast(z_BNC.device.type, enabled=False):
            codes_BN = model.codebook.nearest(z_BNC)
        vectors_BNC = model.codebook.vectors(codes_BN)
        lifted_BND = model.decode_task_layer(z_BNC + (vectors_BNC - z_BNC).detach())
        recon_BND = model.reconstruction_head(lifted_BND)
        generation_BF = model.generation_head(lifted_BND)
        vq = stage.vq_weight * vq_loss(z_BNC, vectors_BNC, stage.beta, stage.legacy_vq)
        similarity = F.cosine_similarity(recon_BND.float(), features_BND, dim=-1)
        reconstruction = stage.reconstruction_weight * (1 - similarity).mean()
        generation = stage.generation_weight * F.mse_loss(generation_BF.float(), target_BF)
        total = vq + reconstruction + generation
        return Quantized(total, vq, reconstruction, generation, z_BNC, codes_BN, recon_BND, generation_BF)


def vq_loss(z: Tensor, vectors: Tensor, beta: float, legacy: bool) -> Tensor:
    """VQ-VAE's codebook and commitment terms of fp32 vectors and their codes' entries.

    ``legacy`` weights the codebook term by ``beta``, otherwise the commitment; the value is the same,
    gradients differ.
    """
    codebook_term = F.mse_loss(vectors, z.detach())
    commitment_term = F.mse_loss(z, vectors.detach())
    if legacy:
        return commitment_term + beta * codebook_term
    return codebook_term + beta * commitment_term
