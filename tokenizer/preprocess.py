"""Image bytes -> the 224x224 RGB picture that the tokenizer sees: decode, colour rule, squash.

Preprocessing is part of the model: whatever changes a pixel here can change a code. It is chosen by
`PreprocessConfig` and recorded in the fingerprint. No torch is imported here: decode processes stay small.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import features

from schemas.quarantine import Reason
from tokenizer.color import COLOR_RULES, ColorRule, clean_pixels, reference_pixels
from tokenizer.image_file import PILLOW_PIXEL_LIMIT, ImageError, open_image, read_bytes
from tokenizer.resize import FILTERS, IMAGE_SIZE, Filter, Pixels, squash

__all__ = ["ImageError", "PreprocessConfig", "load_image"]

PREPROCESS_VERSION = 1
"""Raised when the pixels of any picture change."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture becomes 224x224 RGB, and which pictures are refused."""

    filter: Filter = "bicubic"
    """`bicubic`: the release's image processor. `bilinear`: its bulk tokenization script."""
    color: ColorRule = "reference"
    """`reference`: the release's `convert("RGB")`. `clean`: alpha on white, 16-bit scaled, sRGB, upright."""
    max_pixels: int = PILLOW_PIXEL_LIMIT
    """Width times height above which a picture is refused from its header."""
    max_bytes: int = 256 * 2**20
    """File size above which a picture is refused unread."""
    min_side: int = 1
    """Pixels of the shorter side below which a picture is refused."""
    max_aspect_ratio: float = 0.0
    """Longer over shorter side above which a picture is refused; 0 refuses none."""

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ValueError(f"preprocess.filter must be one of {', '.join(FILTERS)}, got {self.filter!r}")
        if self.color not in COLOR_RULES:
            raise ValueError(f"preprocess.color must be one of {', '.join(COLOR_RULES)}, got {self.color!r}")
        if self.color == "clean" and not features.check("littlecms2"):
            raise ValueError("preprocess.color 'clean' needs a Pillow built with LittleCMS (the wheels are)")
        if not 0 < self.max_pixels <= 2 * PILLOW_PIXEL_LIMIT:
            limit = 2 * PILLOW_PIXEL_LIMIT
            raise ValueError(
                f"preprocess.max_pixels must be 1..{limit}, Pillow's limit; got {self.max_pixels}"
            )
        if self.max_bytes < 1 or self.min_side < 1:
            raise ValueError("preprocess.max_bytes and preprocess.min_side must be at least 1")
        if self.max_aspect_ratio and self.max_aspect_ratio < 1:
            raise ValueError(
                f"preprocess.max_aspect_ratio must be 0 (none) or at least 1, got {self.max_aspect_ratio}"
            )

    def fingerprint_components(self) -> dict[str, str | int]:
        """What decides the pixels of a picture that is accepted; the limits only decide which are."""
        return {
            "filter": self.filter,
            "color": self.color,
            "size": IMAGE_SIZE,
            "resize": "pillow-classic",
            "version": PREPROCESS_VERSION,
        }


def load_image(source: bytes | Path, config: PreprocessConfig) -> Pixels:
    """Decode one picture and squash it to the tokenizer's input.

    Args:
        source: the bytes of an image file, or its path.
        config: filter, colour rule and limits.

    Returns:
        (224, 224, 3) uint8 RGB. Of an animation or a multi-page file, the first picture.

    Raises:
        ImageError: with the reason for which the picture is refused; none is ever repaired.
        OSError: if a path cannot be read.
    """
    try:
        data = read_bytes(source, config.max_bytes)
        with open_image(data, config.max_pixels) as image:
            check_shape(*image.size, config)
            read_pixels = clean_pixels if config.color == "clean" else reference_pixels
            return squash(read_pixels(image, data), config.filter)
    except MemoryError as error:
        raise ImageError(Reason.IMAGE_TOO_LARGE, f"not enough memory for it: {error}") from error


def check_shape(width: int, height: int, config: PreprocessConfig) -> None:
    """Raise ImageError for a picture that is smaller or narrower than asked for."""
    shorter, longer = sorted((width, height))
    if shorter < config.min_side:
        raise ImageError(Reason.IMAGE_TOO_SMALL, f"{width}x{height}, the limit is {config.min_side} a side")
    if config.max_aspect_ratio and longer > config.max_aspect_ratio * shorter:
        detail = f"{width}x{height}, the limit is {config.max_aspect_ratio}:1"
        raise ImageError(Reason.IMAGE_BAD_ASPECT_RATIO, detail)
