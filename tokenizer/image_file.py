"""Image bytes -> decoded picture, or one typed refusal.

Pillow decides what a file is, whether it is sound, and what its pixels are. simplejpeg (libjpeg-turbo)
replaces only the decoding of ordinary JPEGs, where its pixels were measured equal at 1.7 times the speed; at
the slightest complaint of libjpeg the file goes back to Pillow for the verdict.

Everything is bounded before a pixel is decoded: size of the file, pixels claimed by the header, formats.
"""

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from schemas.quarantine import Reason, RefusedError
from tokenizer.resize import IMAGE_SIZE, Pixels

PILLOW_PIXEL_LIMIT = 89_478_485
"""Pillow's own decompression-bomb limit; twice that is an error which no setting of ours can lift."""

LONGEST_SIDE = PILLOW_PIXEL_LIMIT // IMAGE_SIZE
"""Pixels of a side. A picture squashed in one direction only must keep within Pillow's limit as well:
1x50,000,000 are 97 kB of PNG, and 33 GB halfway."""

Image.init()
FORMATS = tuple({"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"} & Image.OPEN.keys())
"""Formats that are read (MPO comes with JPEG, AVIF with Pillow 11.3). Others (JPEG 2000, ICO, PSD, EPS, ...)
are refused, which keeps the attack surface small."""

DAMAGED, UNREAD = Reason.IMAGE_DECODE_ERROR, Reason.IMAGE_UNSUPPORTED_FORMAT
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG", DAMAGED),
    (b"\x89PNG\r\n\x1a\n", "PNG", DAMAGED),
    (b"GIF8", "GIF", DAMAGED),
    (b"BM", "BMP", DAMAGED),
    (b"II*\0", "TIFF", UNREAD),  # Pillow reads some of its many kinds, and says no more of the others
    (b"MM\0*", "TIFF", UNREAD),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", UNREAD),
    (b"\xff\x4f\xff\x51", "JPEG 2000", UNREAD),
    (b"\0\0\0\x0cJXL ", "JPEG XL", UNREAD),
    (b"\xff\x0a", "JPEG XL", UNREAD),
    (b"\0\0\x01\0", "ICO", UNREAD),
    (b"8BPS", "PSD", UNREAD),
    (b"%!PS", "PostScript", UNREAD),
    (b"\x76\x2f\x31\x01", "OpenEXR", UNREAD),
)
"""First bytes of image formats, and why Pillow did not open a file that starts with them."""

FAST_SAMPLINGS = {"444", "422", "420"}
"""Chroma samplings for which both libjpeg-turbo paths were measured equal on real pictures."""


class ImageError(RefusedError):
    """An image that was refused."""


def read_bytes(source: bytes | Path, max_bytes: int) -> bytes:
    """The file's bytes, refused when empty or above `max_bytes` (before reading them)."""
    num_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
    if num_bytes == 0:
        raise ImageError(Reason.IMAGE_EMPTY, "zero bytes")
    if num_bytes > max_bytes:
        raise ImageError(Reason.IMAGE_TOO_LARGE, f"{num_bytes} bytes, the limit is {max_bytes}")
    return source.read_bytes() if isinstance(source, Path) else source


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header; no pixel is decoded.

    Raises:
        ImageError: not an image, not a format we read, damaged, more pixels than `max_pixels`, or a side of
            more than LONGEST_SIDE.
        MemoryError: as it says.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated pictures would be grey")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise unidentified(data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # parsers raise anything on hostile bytes; it is recorded, not hidden
        raise ImageError(Reason.IMAGE_DECODE_ERROR, describe(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(Reason.IMAGE_TOO_LARGE, f"{width}x{height} pixels, the limit is {max_pixels} pixels")
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(Reason.IMAGE_TOO_LARGE, f"{width}x{height}, the limit is {LONGEST_SIDE} a side")
    return image


def unidentified(data: bytes) -> ImageError:
    """Why Pillow recognised nothing: a damaged picture, a format we do not read, or no picture at all."""
    for signature, name, reason in SIGNATURES:
        if data.startswith(signature):
            explanation = "its header is damaged" if reason is DAMAGED else "of a kind that is not read"
            return ImageError(reason, f"a {name} file, {explanation}")
    if data[4:8] == b"ftyp":
        return ImageError(UNREAD, f"ISO media file of brand {data[8:12]!r}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ImageError(DAMAGED, "a WebP file, its header is damaged")
    if b"<svg" in data[:4096].lower():
        return ImageError(UNREAD, "SVG is not a raster format")
    return ImageError(Reason.IMAGE_NOT_AN_IMAGE, f"starts with {data[:16]!r}")


def load_image_file(image: ImageFile.ImageFile) -> None:
    """Decode the first frame with Pillow.

    Raises:
        ImageError: `image_truncated` when data ends early, `image_decode_error` for any other damage.
        MemoryError: as it says.
    """
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # as above: whatever the decoder raises, the sample is refused with its words
        is_truncated = "truncated" in str(error).lower()
        reason = Reason.IMAGE_TRUNCATED if is_truncated else Reason.IMAGE_DECODE_ERROR
        raise ImageError(reason, describe(error)) from error


def fast_jpeg_pixels(image: ImageFile.ImageFile, data: bytes) -> Pixels | None:
    """(h, w, 3) uint8 of an ordinary colour JPEG, equal to Pillow's; None when Pillow must decode it.

    Ordinary: YCbCr, chroma sampling 4:4:4, 4:2:2 or 4:2:0, baseline or progressive, no warning from libjpeg.
    """
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return None
    try:
        height, width, color, sampling = simplejpeg.decode_jpeg_header(data)
        if color != "YCbCr" or sampling not in FAST_SAMPLINGS or (width, height) != image.size:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:  # libjpeg warned or failed
        return None
    return np.asarray(pixels)


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
