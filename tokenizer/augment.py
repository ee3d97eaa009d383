"""Training augmentation of whole batches: a random crop, a mirror image, and if asked a turn and a change of
light.

The release crops 50-100 % of the area (sides within 3:4..4:3) and mirrors half of the pictures. Here one
bilinear resampling does crop, mirror and turn together, on the device, from the squashed picture.

Dimensions: B images, R rows, U columns.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much pictures vary in training. Defaults are the release's."""

    min_area: float = 0.5
    """Least fraction of the area that a crop keeps; 1 turns cropping off."""
    max_log_aspect: float = math.log(4 / 3)
    """Logarithm of the largest ratio of a crop's sides."""
    mirror: float = 0.5
    """Probability of a mirror image."""
    max_turn_degrees: float = 0.0
    """Pictures are turned by up to so much, either way."""
    max_gain: float = 0.0
    """Contrast and brightness vary by up to this fraction."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise ValueError(f"augment.min_area must be in (0, 1], got {self.min_area}")
        if not 0 <= self.mirror <= 1:
            raise ValueError(f"augment.mirror must be a probability, got {self.mirror}")
        if min(self.max_log_aspect, self.max_turn_degrees, self.max_gain) < 0 or self.max_gain >= 1:
            raise ValueError("augment: max_log_aspect, max_turn_degrees and max_gain must not be negative")


NUM_DRAWS = 8
"""Random numbers for each view."""

NO_MIRROR_WORDS = frozenset(
    {"left", "right", "leftward", "rightward", "leftwards", "rightwards", "leftmost", "rightmost"}
    | {"clockwise", "anticlockwise", "counterclockwise"}
)
"""A caption with one of these would be false of the mirror image."""


def may_mirror(caption: str) -> bool:
    """Whether the caption stays true of the mirror image, as far as its words tell; a word ends where its
    letters do, whatever follows."""
    return NO_MIRROR_WORDS.isdisjoint(re.findall(r"[a-z]+", caption.lower()))


def draw_views(num_images: int, rng: torch.Generator) -> Tensor:
    """(8, B) fp32 uniform in [0, 1): what alone decides the views of so many pictures."""
    return torch.rand(NUM_DRAWS, num_images, generator=rng)


def augment(images_B: Tensor, mirrored_B: Tensor, config: AugmentConfig, draws_8B: Tensor) -> Tensor:
    """A random view of each picture.

    Args:
        images_B: (B, R, U, 3) uint8.
        mirrored_B: (B,) bool, pictures that may be mirrored.
        config: how far.
        draws_8B: of ``draw_views``.

    Returns:
        (B, R, U, 3) uint8.
    """
    draws = draws_8B.to(images_B.device)
    affine = _affine(draws, mirrored_B.to(images_B.device), config)
    pixels = images_B.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    views = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if config.max_gain:
        gain, lift = (1 + config.max_gain * (2 * draws[row] - 1).view(-1, 1, 1, 1) for row in (5, 6))
        views = views * gain + 255 * (lift - 1) / 2
    return views.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def mirror(images_B: Tensor, mirrored_B: Tensor, config: AugmentConfig, draws_8B: Tensor) -> Tensor:
    """The whole pictures, mirrored where ``augment`` mirrors its views with the same draws."""
    is_mirrored = _is_mirrored(draws_8B.to(images_B.device), mirrored_B.to(images_B.device), config)
    return torch.where(is_mirrored.view(-1, 1, 1, 1), images_B.flip(2), images_B)


def _is_mirrored(draws: Tensor, mirrored_B: Tensor, config: AugmentConfig) -> Tensor:
    return (draws[2] < config.mirror) & mirrored_B


def _affine(draws: Tensor, mirrored_B: Tensor, config: AugmentConfig) -> Tensor:
    """(B, 2, 3): output coordinates in [-1, 1] to input coordinates; ``draws`` (8, B) uniform in [0, 1)."""
    area = config.min_area + (1 - config.min_area) * draws[0]
    aspect = torch.exp(config.max_log_aspect * (2 * draws[1] - 1))
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    sign = torch.where(_is_mirrored(draws, mirrored_B, config), -1.0, 1.0)
    angle = math.radians(config.max_turn_degrees) * (2 * draws[3] - 1)
    shift_x = (1 - width) * (2 * draws[4] - 1)
    shift_y = (1 - height) * (2 * draws[7] - 1)
    rows = [
        [width * sign * angle.cos(), -height * angle.sin(), shift_x],
        [width * sign * angle.sin(), height * angle.cos(), shift_y],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
