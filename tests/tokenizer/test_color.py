"""Both colour rules have one defined result for every kind of picture."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tokenizer.color import clean_pixels, reference_pixels, upright
from tokenizer.image_file import FORMATS, open_image
from tokenizer.resize import Pixels

MAX_PIXELS = 10**6


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def both(data: bytes) -> tuple[Pixels, Pixels]:
    """(reference, clean) pixels of a file."""
    return reference_pixels(open_image(data, MAX_PIXELS), data), clean_pixels(
        open_image(data, MAX_PIXELS), data
    )


def flat(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (8, 6), color)


def palette(color: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 7)
    image.putpalette([0] * 21 + list(color))
    return image


def deep(value: float, dtype: str) -> Image.Image:
    return Image.fromarray(np.full((6, 8), value, dtype))


WHITE = (255, 255, 255)
FLAT_CASES = {
    # kind: (file, reference, clean)
    "1-bit": (encode(flat("1", 1), "PNG"), WHITE, WHITE),
    "grey": (encode(flat("L", 90), "PNG"), (90, 90, 90), (90, 90, 90)),
    "grey, transparent level": (encode(flat("L", 90), "PNG", transparency=90), (90, 90, 90), WHITE),
    "grey with alpha 0": (encode(flat("LA", (90, 0)), "PNG"), (90, 90, 90), WHITE),
    "RGB": (encode(flat("RGB", (10, 20, 30)), "PNG"), (10, 20, 30), (10, 20, 30)),
    "RGB, transparent colour": (
        encode(flat("RGB", (10, 20, 30)), "PNG", transparency=(10, 20, 30)),
        (10, 20, 30),
        WHITE,
    ),
    "RGBA, alpha 0": (encode(flat("RGBA", (10, 20, 30, 0)), "PNG"), (10, 20, 30), WHITE),
    "RGBA, alpha 255": (encode(flat("RGBA", (10, 20, 30, 255)), "PNG"), (10, 20, 30), (10, 20, 30)),
    "RGBA, alpha 51": (encode(flat("RGBA", (0, 100, 200, 51)), "PNG"), (0, 100, 200), (204, 224, 244)),
    "palette": (encode(palette((9, 8, 7)), "PNG"), (9, 8, 7), (9, 8, 7)),
    "palette, transparent index": (encode(palette((9, 8, 7)), "PNG", transparency=7), (9, 8, 7), WHITE),
    "palette, alpha per index": (
        encode(palette((0, 100, 200)), "PNG", transparency=bytes([255] * 7 + [51])),
        (0, 100, 200),
        (204, 224, 244),
    ),
    "16-bit grey": (encode(deep(0x1234, "uint16"), "PNG"), WHITE, (0x12, 0x12, 0x12)),
    "16-bit grey, dark": (encode(deep(200, "uint16"), "PNG"), (200, 200, 200), (0, 0, 0)),
    "16-bit grey TIFF, big-endian": (encode(deep(0x1234, ">u2"), "TIFF"), WHITE, (0x12, 0x12, 0x12)),
    "32-bit grey": (encode(deep(0x1234, "int32"), "TIFF"), WHITE, (0x12, 0x12, 0x12)),
    "32-bit grey, negative": (encode(deep(-5, "int32"), "TIFF"), (0, 0, 0), (0, 0, 0)),
    "float": (encode(deep(100.9, "float32"), "TIFF"), (100, 100, 100), (100, 100, 100)),
    "float, not a number": (encode(deep(np.nan, "float32"), "TIFF"), (0, 0, 0), (0, 0, 0)),
    "CMYK": (encode(flat("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255), (0, 255, 255)),
    "grey JPEG": (encode(flat("L", 90), "JPEG"), (90, 90, 90), (90, 90, 90)),
    "animation": (
        encode(flat("RGB", 0), "GIF", save_all=True, append_images=[flat("RGB", WHITE)]),
        (0, 0, 0),
        (0, 0, 0),
    ),
    "two-page TIFF": (
        encode(flat("RGB", (1, 2, 3)), "TIFF", save_all=True, append_images=[flat("RGB", WHITE)]),
        (1, 2, 3),
        (1, 2, 3),
    ),
    "MPO": (
        encode(flat("RGB", 0), "MPO", save_all=True, append_images=[flat("RGB", WHITE)]),
        (0, 0, 0),
        (0, 0, 0),
    ),
}


@pytest.mark.parametrize("kind", FLAT_CASES)
def test_flat_pictures(kind: str) -> None:
    data, reference, clean = FLAT_CASES[kind]
    for pixels, expected in zip(both(data), (reference, clean), strict=True):
        assert pixels.shape == (6, 8, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [expected])


def png_with_bit_depth_16(color: tuple[int, int, int]) -> bytes:
    """8x6 RGB PNG of 16 bits a channel, which Pillow cannot write."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = b"\0" + struct.pack(">3H", *color) * 8
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * 6)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    for pixels in both(png_with_bit_depth_16((0x12FF, 0x3400, 0xFFFF))):
        np.testing.assert_array_equal(pixels[0, 0], (0x12, 0x34, 0xFF))


def test_16_bit_transparent_level_is_white_in_clean() -> None:
    reference, clean = both(encode(deep(100, "uint16"), "PNG", transparency=100))
    assert (reference == 100).all()
    assert (clean == 255).all()


def test_lab_is_converted_through_its_colour_space() -> None:
    for pixels in both(encode(flat("LAB", (128, 128, 128)), "TIFF")):
        assert abs(pixels.astype(int) - 119).max() <= 2  # L* = 50 in sRGB


def gradient() -> Image.Image:
    """A picture without any symmetry."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encode(gradient(), "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_as_pillow_understands_it(value: int) -> None:
    data = with_orientation(value)
    reference, clean = both(data)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(reference, np.asarray(image))
        np.testing.assert_array_equal(clean, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_orientation_counts_as_1(value: int) -> None:
    reference, clean = both(with_orientation(value))
    np.testing.assert_array_equal(reference, clean)


LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "TIFF": {},
    "TIFF, LZW": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", LOSSLESS)
def test_orientation_by_format(kind: str, value: int) -> None:
    """`clean` is upright in all; `reference` is as stored in all but TIFF, which Pillow turns by itself."""
    image_format = kind.partition(",")[0]
    if image_format not in FORMATS:
        pytest.skip(f"this Pillow reads no {image_format}")
    exif = Image.Exif()
    exif[0x0112] = value
    reference, clean = both(encode(gradient(), image_format, exif=exif, **LOSSLESS[kind]))
    stored = np.asarray(gradient())
    np.testing.assert_allclose(clean, upright(stored, value), atol=8 if image_format == "AVIF" else 0)
    np.testing.assert_array_equal(reference, clean if image_format == "TIFF" else upright_back(clean, value))


def upright_back(pixels: Pixels, exif_orientation: int) -> Pixels:
    """The inverse of `upright`: quarter turns 6 and 8 undo each other, the others undo themselves."""
    return upright(pixels, {6: 8, 8: 6}.get(exif_orientation, exif_orientation))


def test_broken_exif_is_ignored() -> None:
    reference, clean = both(encode(gradient(), "JPEG", exif=b"Exif\0\0" + bytes(range(64))))
    np.testing.assert_array_equal(reference, clean)


def test_upright_is_contiguous() -> None:
    pixels = np.asarray(gradient())
    assert all(upright(pixels, value).flags.c_contiguous for value in range(1, 9))


def swapped_profile() -> bytes:
    """A small ICC profile whose red is sRGB's blue and the other way round: easy to recognise, and not sRGB.

    Matrix and gamma profile after the ICC specification, version 2.1; colorants are sRGB's, adapted to D50.
    """

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 8) + b"swapped\0" + bytes(79)
    tags = {b"desc": text, b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)}
    for name, colorant in zip((b"r", b"g", b"b"), (blue, green, red), strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*colorant)
        tags[name + b"TRC"] = curve
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += padded
    header = bytearray(128)
    struct.pack_into(
        ">I4sI4s4s4s", header, 0, offset + len(body), b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    header[36:40] = b"acsp"
    header[68:80] = fixed(0.9642, 1.0, 0.8249)
    return bytes(header) + table + body


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_profile_is_applied_by_clean_only(image_format: str) -> None:
    data = encode(flat("RGB", (220, 60, 30)), image_format, icc_profile=swapped_profile())
    reference, clean = both(data)
    assert abs(reference[0, 0].astype(int) - (220, 60, 30)).max() <= 2
    assert abs(clean[0, 0].astype(int) - (30, 60, 220)).max() <= 8


def test_profile_leaves_alpha_alone() -> None:
    image = Image.new("RGBA", (8, 6), (220, 60, 30, 255))
    image.putpixel((0, 0), (220, 60, 30, 0))
    _, clean = both(encode(image, "PNG", icc_profile=swapped_profile()))
    np.testing.assert_array_equal(clean[0, 0], WHITE)
    assert abs(clean[1, 1].astype(int) - (30, 60, 220)).max() <= 8


def test_rgb_profile_on_a_grey_picture_is_understood() -> None:
    _, clean = both(encode(flat("L", 120), "PNG", icc_profile=swapped_profile()))
    assert abs(clean.astype(int) - 120).max() <= 4


@pytest.mark.parametrize("profile", [b"not a profile", swapped_profile()[:200], swapped_profile()[:128]])
def test_corrupt_profile_is_ignored(profile: bytes) -> None:
    reference, clean = both(encode(flat("RGB", (220, 60, 30)), "JPEG", icc_profile=profile))
    np.testing.assert_array_equal(reference, clean)


def test_profile_of_another_colour_space_is_ignored() -> None:
    reference, clean = both(encode(flat("CMYK", (255, 0, 0, 0)), "TIFF", icc_profile=swapped_profile()))
    np.testing.assert_array_equal(reference, clean)


def test_srgb_profile_changes_no_pixel() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    reference, clean = both(encode(gradient(), "PNG", icc_profile=profile))
    np.testing.assert_array_equal(reference, clean)


def test_text_chunks_do_not_matter() -> None:
    info = PngInfo()
    info.add_text("comment", "x" * 1000, zip=True)
    reference, clean = both(encode(gradient(), "PNG", pnginfo=info))
    np.testing.assert_array_equal(reference, clean)
