"""What the generation head of stage 2 learns to predict: an image embedding that pictures can be drawn from.

The real target is the image embedding of CLIP ViT-H/14, which unCLIP Stable Diffusion 2.1 draws from
(``ClipTarget``). Where no CLIP is at hand ``SubstituteTarget`` stands in: the picture's feature of stage 1,
which knows what the caption knows, beside principal components of a thumbnail, which know colours and rough
shape. It is made from the training pictures alone and is enough for the small pixel decoder; no diffusion
model can draw from it.

Dimensions: B images, K components, E joint width, F = E + K.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizer.contrastive_stage import ContrastiveModel
from tokenizer.thumbnail import ThumbnailComponents
from tokenizer.vit import PIXEL_MEAN, PIXEL_STD


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

    def __init__(self, model: ContrastiveModel, num_components: int) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.components = ThumbnailComponents(num_components)

    @property
    def width(self) -> int:
        """F."""
        return self.model.stage.embed_dim + self.components.num_components

    @torch.no_grad()
    def forward(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, F) fp32."""
        feature_BE = self.model.image_features(images_B)[:, -1]
        feature_BE = feature_BE * (0.5 * feature_BE.shape[1] ** 0.5)
        with torch.autocast(images_B.device.type, enabled=False):
            return torch.cat([feature_BE, 0.5 * self.components(images_B)], dim=1)
