"""Principal components of small pictures, and the task of telling them from the causal embeddings, coarse to
fine.

The paper starts from a ViT and a Q-Former that know pictures well (EVA, BLIP-2). From random weights the
contrastive loss alone teaches what captions tell apart, and the embeddings lose the rest of the picture.
``ThumbnailTask`` stands in for that start, as a second loss of stage 1: each query tells a few principal
components of the whole picture's thumbnail, the first query the strongest, later ones finer ones. So no query
is another's copy. It is no part of SEED.

Dimensions: B images, s thumbnail side, P pixels (3 s s), K components, N queries, D width of the embeddings,
W components told by a query, the next one's S further on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THUMBNAIL_SIDE = 32


class ThumbnailComponents(nn.Module):
    """Principal components of thumbnails, scaled so that their mean square over fitted pictures is 1."""

    mean_P: Tensor
    components_PK: Tensor
    scale_K: Tensor

    def __init__(self, num_components: int) -> None:
        super().__init__()
        num_pixels = 3 * THUMBNAIL_SIDE**2
        if num_components > num_pixels:
            raise ValueError(
                f"{num_components} components of thumbnails, which have {num_pixels} values; lower "
                "thumbnail.window, thumbnail.stride or model.image_features_dim"
            )
        self.num_components = num_components
        self.register_buffer("mean_P", torch.zeros(num_pixels))
        self.register_buffer("components_PK", torch.zeros(num_pixels, num_components))
        self.register_buffer("scale_K", torch.ones(num_components))

    @torch.no_grad()
    def fit(self, thumbnails_B: Tensor) -> None:
        """Principal components of these ``thumbnails``, of which there are more than ``num_components``.

        Components are divided by the fourth root of their variance: half-way between true pixel distances,
        where the first few drown the rest, and whitening, where noise weighs as much as shape.
        """
        pixels_BP = thumbnails_B.flatten(1)
        self.mean_P.copy_(pixels_BP.mean(dim=0))
        _, singular, components = torch.linalg.svd(pixels_BP - self.mean_P, full_matrices=False)
        deviation_K = singular[: self.num_components] / len(pixels_BP) ** 0.5
        self.components_PK.copy_(components[: self.num_components].T)
        root_K = deviation_K.clamp(min=1e-6).rsqrt()
        self.scale_K.copy_(root_K / (deviation_K * root_K).square().mean().sqrt())

    @torch.no_grad()
    def forward(self, images_B: Tensor) -> Tensor:
        """(B, R, U, 3) uint8 -> (B, K) fp32."""
        coefficients_BK = (thumbnails(images_B).flatten(1) - self.mean_P) @ self.components_PK
        return coefficients_BK * self.scale_K


class ThumbnailTask(nn.Module):
    """One linear layer for all queries; it reads W components from each, from the next one S further on.

    A layer for each query would let all of them hold the same.
    """

    def __init__(self, num_queries: int, width: int, window: int, stride: int, rng: torch.Generator) -> None:
        super().__init__()
        self.window, self.stride = window, stride
        self.components = ThumbnailComponents((num_queries - 1) * stride + window)
        self.head = nn.Linear(width, window)
        nn.init.normal_(self.head.weight, std=width**-0.5, generator=rng)
        nn.init.zeros_(self.head.bias)

    def forward(self, queries_BND: Tensor, target_BK: Tensor) -> Tensor:
        """Mean square error (fp32 scalar) of causal embeddings against ``components`` of the pictures."""
        with torch.autocast(queries_BND.device.type, enabled=False):
            told_BNW = self.head(queries_BND.float())
        return F.mse_loss(told_BNW, target_BK.unfold(1, self.window, self.stride))


def thumbnails(images_B: Tensor, side: int = THUMBNAIL_SIDE) -> Tensor:
    """(B, R, U, 3) uint8 -> (B, 3, side, side) fp32 in [-1, 1], averaged over areas."""
    pixels = images_B.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(pixels, size=(side, side), mode="area")
