"""What the generation head of stage 2 learns to predict: an image embedding that pictures can be drawn from.

The real target is the image embedding of CLIP ViT-H/14, which unCLIP Stable Diffusion 2.1 draws from
(``ClipTarget``). Where no CLIP is at hand ``SubstituteTarget`` stands in: the picture's feature of stage 1,
which knows what the caption knows, beside principal components of a thumbnail, which know colours and rough
shape. It is made from the training pictures alone and is enough for the small pixel decoder; no diffusion
model can draw from it.

Dimensions: B images, S thumbnail side, P pixels (3 S S), K components, E joint width, F = E + K.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.contrastive_stage import ContrastiveModel
from tokenizer.vit import PIXEL_MEAN, PIXEL_STD

THUMBNAIL_SIDE = 32


class ClipTarget(nn.Module):
    """Image embeddings of a CLIP vision tower with projection, not normalised, as unCLIP takes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Load from a local path, or from the hub as ``owner/name:folder``.

        For SEED: ``stabilityai/stable-diffusion-2-1-unclip:image_encoder``.
        """
        from transformers import CLIPVisionModelWithProjection

        super().__init__()
        repository, _, folder = str(source).partition(":")
        self.tower = CLIPVisionModelWithProjection.from_pretrained(repository, subfolder=folder, dtype=dtype)
        self.tower.requires_grad_(False)
        self.tower.train(False)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """F."""
        return int(self.tower.config.projection_dim)

    @torch.no_grad()
    def forward(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, F) fp32."""
        pixels = images_B.permute(0, 3, 1, 2).float() / 255
        out = self.tower(((pixels - self.mean) / self.std).to(self.tower.dtype))
        embeds: Tensor = out.image_embeds.float()
        return embeds


class SubstituteTarget(nn.Module):
    """Feature of stage 1 and principal components of a thumbnail, side by side, at the scale of CLIP's (about
    0.5)."""

    mean_P: Tensor
    components_PK: Tensor
    scale_K: Tensor

    def __init__(self, model: ContrastiveModel, num_components: int) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        num_pixels = 3 * THUMBNAIL_SIDE**2
        self.register_buffer("mean_P", torch.zeros(num_pixels))
        self.register_buffer("components_PK", torch.zeros(num_pixels, num_components))
        self.register_buffer("scale_K", torch.ones(num_components))

    @property
    def width(self) -> int:
        """F."""
        return self.model.stage.embed_dim + len(self.scale_K)

    @torch.no_grad()
    def fit(self, images_B: Tensor) -> None:
        """Principal components of these pictures ((B, R, U, 3) uint8, more than ``num_components``).

        Components are divided by the fourth root of their variance: half-way between true pixel distances,
        where the first few drown the rest, and whitening, where noise weighs as much as shape.
        """
        pixels_BP = thumbnails(images_B).flatten(1)
        self.mean_P = pixels_BP.mean(dim=0)
        _, singular, components = torch.linalg.svd(pixels_BP - self.mean_P, full_matrices=False)
        num_components = len(self.scale_K)
        deviation_K = singular[:num_components] / len(images_B) ** 0.5
        self.components_PK = components[:num_components].T.contiguous()
        root_K = deviation_K.clamp(min=1e-6).rsqrt()
        self.scale_K = root_K * 0.5 / (deviation_K * root_K).square().mean().sqrt()

    @torch.no_grad()
    def forward(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, F) fp32."""
        feature_BE = self.model.image_features(images_B)[:, -1]
        feature_BE = feature_BE * (0.5 * feature_BE.shape[1] ** 0.5)
        coefficients_BK = (thumbnails(images_B).flatten(1) - self.mean_P) @ self.components_PK
        return torch.cat([feature_BE, coefficients_BK * self.scale_K], dim=1)


def thumbnails(images_B: Tensor, side: int = THUMBNAIL_SIDE) -> Tensor:
    """(B, R, U, 3) uint8 -> (B, 3, side, side) fp32 in [-1, 1], averaged over areas."""
    pixels = images_B.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(pixels, size=(side, side), mode="area")
