"""The two colour rules: any decoded picture -> (h, w, 3) uint8.

`reference` is what the release does, `image.convert("RGB")` with the Pillow of its time: alpha and profiles
are dropped, 16-bit grey is clipped at 255, and nothing is rotated but TIFFs, which Pillow has turned upright
while loading since version 6 (tested: 9.5, 10.4, 12.3). Codes of the release belong to these pixels.

`clean` is what a viewer shows: alpha on white, 16-bit scaled, ICC profile to sRGB, EXIF orientation applied.

`docs/preprocessing.md` lists the result of both for every kind of picture.
"""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile

from schemas.quarantine import Reason
from tokenizer.image_file import ImageError, describe, fast_jpeg_pixels, load_image_file
from tokenizer.resize import Pixels

ColorRule = Literal["reference", "clean"]
COLOR_RULES: tuple[ColorRule, ...] = ("reference", "clean")

EXIF_ORIENTATION = 0x0112
PROFILE_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space that an ICC profile declares -> the Pillow mode that it describes."""


def reference_pixels(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    """(h, w, 3) uint8 under the rule `reference`; decodes the image. Raises ImageError."""
    pixels = fast_jpeg_pixels(image, data)
    if pixels is not None:
        return pixels
    load_image_file(image)
    if is_deep(image):
        return gray_to_rgb(clipped(np.asarray(image)))
    return np.asarray(to_rgb(image))


def clean_pixels(image: ImageFile.ImageFile, data: bytes) -> Pixels:
    """(h, w, 3) uint8 under the rule `clean`; decodes the image. Raises ImageError."""
    pixels = fast_jpeg_pixels(image, data)
    if pixels is None:
        load_image_file(image)
    profile = image.info.get("icc_profile")
    if pixels is None or profile:
        picture = image if pixels is None else Image.fromarray(pixels)
        pixels = viewed_pixels(picture, profile)
    return upright(pixels, orientation(image))


def viewed_pixels(image: Image.Image, profile: bytes | None) -> Pixels:
    """Depth, profile and alpha of a decoded picture resolved, not its orientation; (h, w, 3) uint8."""
    if is_deep(image):
        return gray_to_rgb(scaled_to_8_bit(image))
    if image.mode in ("1", "P", "PA") or image.has_transparency_data:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile:
        image = to_srgb(image, profile)
    if "A" in image.getbands():
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion; a mode that it cannot convert is an unsupported format."""
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(Reason.IMAGE_UNSUPPORTED_FORMAT, f"mode {image.mode}: {error}") from None


def is_deep(image: Image.Image) -> bool:
    """More than 8 bits a channel in memory: I;16*, I (32-bit integer), F. Pillow has these for grey only."""
    return image.mode.startswith("I") or image.mode == "F"


def clipped(gray: npt.NDArray[np.generic]) -> Pixels:
    """Pillow's conversion of deep grey to 8 bits: clip to 0..255, drop the fraction, NaN is black."""
    pixels: Pixels = np.nan_to_num(np.clip(gray, 0, 255)).astype(np.uint8)
    return pixels


def scaled_to_8_bit(image: Image.Image) -> Pixels:
    """(h, w) uint8: the high byte of 16-bit grey, the transparent level white; floats (any range) clipped.

    The high byte is also what Pillow keeps of 16-bit RGB, so both kinds are scaled alike.
    """
    gray = np.asarray(image)
    if image.mode == "F":
        return clipped(gray)
    scaled: Pixels = (np.clip(gray, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[gray == transparent] = 255
    return scaled


def gray_to_rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[:, :, None], 3, axis=2)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours moved to sRGB; a profile that is corrupt, of another colour space, or sRGB changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = PROFILE_SPACES.get(source.profile.xcolor_space.strip())
        if mode is None or "sRGB" in ImageCms.getProfileDescription(source):
            return image
        alpha = image.getchannel("A") if "A" in image.getbands() else None
        colors = image.convert(mode) if mode_has_colors_of(image, mode) else None
        if colors is None:
            return image
        moved = ImageCms.profileToProfile(colors, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    if moved is not None and alpha is not None:
        moved.putalpha(alpha)
    return moved or image


def mode_has_colors_of(image: Image.Image, profile_mode: str) -> bool:
    """Whether a profile for `profile_mode` can describe this picture: grey may carry an RGB profile."""
    if image.mode in ("L", "LA"):
        return profile_mode in ("L", "RGB")
    return profile_mode == ("CMYK" if image.mode == "CMYK" else "RGB")


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 still to be applied; missing, invalid or unreadable EXIF counts as 1.

    A TIFF that is loaded has none: Pillow applied and removed it.
    """
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception as error:  # EXIF is parsed from hostile bytes; the pixels are sound without it
        image.info["exif_error"] = describe(error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: Pixels, exif_orientation: int) -> Pixels:
    """Undo the camera's orientation (EXIF 2.3, tag 0x0112)."""
    if exif_orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)  # 5..8 are 1, 4, 2, 3 of the transposed picture
    flip_rows = exif_orientation in (3, 4, 7, 8)
    flip_columns = exif_orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
