"""The canonical squash against Pillow, against arithmetic written out plainly, and without numba."""

import hashlib
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenizer.compiled import compiled
from tokenizer.resize import FILTERS, Filter, Pixels, squash, squash_compiled, squash_with_pillow

ROOT = Path(__file__).resolve().parents[2]
PIXELS = ROOT / "tests" / "data" / "pixels"
PILLOW_MAJOR = int(PIL.__version__.split(".")[0])
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

sides = st.integers(1, 40) | st.integers(1, 700)
filters = st.sampled_from(FILTERS)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Half noise, half saturated black and white, whose bicubic overshoot must be clipped."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[::2] = np.where(image[::2] < 128, 0, 255)
    return image


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, filter_name=filters, seed=st.integers(0, 2**32 - 1))
@example(height=1, width=1, filter_name="bicubic", seed=0)
@example(height=5000, width=1, filter_name="bicubic", seed=0)
@example(height=1, width=5000, filter_name="bilinear", seed=0)
@example(height=224, width=224, filter_name="bicubic", seed=0)
@example(height=2000, width=300, filter_name="bicubic", seed=0)
def test_both_ways_equal_pillow(height: int, width: int, filter_name: Filter, seed: int) -> None:
    image = noise(height, width, seed)
    squashed = squash_compiled(image, filter_name)
    np.testing.assert_array_equal(squash_with_pillow(image, filter_name), squashed)
    if PILLOW_MAJOR < 12 or (
        PILLOW_MAJOR == 12 and height <= 100 * width
    ):  # where its order is the classic one
        in_one_call = Image.fromarray(image).resize((224, 224), RESAMPLING[filter_name])
        np.testing.assert_array_equal(np.asarray(in_one_call), squashed)


def plain_pass(image: Pixels, size: int, support: float, kernel) -> Pixels:
    """One horizontal pass as its definition reads, in Python integers."""
    height, width, _ = image.shape
    scale = width / size
    stretch = max(scale, 1.0)
    result = np.zeros((height, size, 3), np.uint8)
    for i in range(size):
        center = (i + 0.5) * scale
        first = max(math.floor(center - support * stretch + 0.5), 0)
        last = min(math.floor(center + support * stretch + 0.5), width)
        raw = [kernel((x - center + 0.5) / stretch) for x in range(first, last)]
        total = sum(raw)
        fixed = [int(math.copysign(math.floor(abs(w / total) * 2**22 + 0.5), w)) for w in raw]
        for y in range(height):
            for c in range(3):
                value = sum(w * int(image[y, x, c]) for w, x in zip(fixed, range(first, last), strict=True))
                result[y, i, c] = min(max((value + 2**21) >> 22, 0), 255)
    return result


def keys_cubic(distance: float) -> float:
    x = abs(distance)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def tent(distance: float) -> float:
    return max(1 - abs(distance), 0.0)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 20), filter_name=filters)
def test_arithmetic_as_defined(height: int, width: int, size: int, filter_name: Filter) -> None:
    """Rows, 8 bits, columns. A weight may differ by one unit of 2**-22 (order of the formula): +-1 level."""
    image = noise(height, width)
    kernel, support = (keys_cubic, 2.0) if filter_name == "bicubic" else (tent, 1.0)
    rows = plain_pass(image, size, support, kernel)
    expected = plain_pass(rows.transpose(1, 0, 2), size, support, kernel).transpose(1, 0, 2)
    difference = squash_compiled(image, filter_name, size).astype(int) - expected.astype(int)
    assert np.abs(difference).max() <= 1
    assert Fraction(int((difference != 0).sum()), difference.size) <= Fraction(1, 100)


def test_pass_order_is_the_classic_one() -> None:
    """On a tall picture columns-first gives other pixels: the test that fails if the passes are swapped."""
    image = noise(1600, 300)
    columns_first = squash_compiled(image.transpose(1, 0, 2).copy(), "bicubic").transpose(1, 0, 2)
    assert (columns_first != squash_compiled(image, "bicubic")).any()


def test_input_is_not_changed_and_strides_do_not_matter() -> None:
    image = noise(300, 400)
    view = image[::-2, ::3]
    before = image.copy()
    np.testing.assert_array_equal(squash(view, "bicubic"), squash(np.ascontiguousarray(view), "bicubic"))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "filter_name"),
    [
        (np.zeros((4, 4), np.uint8), "bicubic"),
        (np.zeros((4, 4, 4), np.uint8), "bicubic"),
        (np.zeros((4, 4, 3), np.float32), "bicubic"),
        (np.zeros((0, 4, 3), np.uint8), "bicubic"),
        (np.zeros((4, 4, 3), np.uint8), "lanczos"),
    ],
)
def test_wrong_input_is_refused(image: Pixels, filter_name: Filter) -> None:
    with pytest.raises(ValueError, match=r"squash takes|filter must be"):
        squash(image, filter_name)


def test_without_numba_the_pixels_are_the_same() -> None:
    program = """
import hashlib, json, sys
sys.modules["numba"] = None
import numpy as np
from PIL import Image
from tokenizer.preprocess import PreprocessConfig, load_image
from tokenizer import resize
from pathlib import Path
resize.squash_compiled = None
known = json.loads(Path("tests/data/pixels/sha256.json").read_text())
for name, hashes in known.items():
    for filter_name, expected in hashes.items():
        pixels = load_image(Path("tests/data/pixels") / name, PreprocessConfig(filter=filter_name))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected, (name, filter_name)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_kernels_compile_where_nothing_can_be_cached() -> None:
    """A function from no file has no cache folder: numba refuses to cache it, and we compile without."""
    namespace: dict[str, object] = {"compiled": compiled}
    exec("@compiled\ndef double(x):\n    return 2 * x\n", namespace)
    assert namespace["double"](21) == 42  # type: ignore[operator]


def test_known_hashes_cover_both_filters() -> None:
    known = json.loads((PIXELS / "sha256.json").read_text())
    assert len(known) >= 10
    for name, hashes in known.items():
        assert (PIXELS / name).exists()
        assert set(hashes) == set(FILTERS)
        assert all(len(value) == hashlib.sha256().digest_size * 2 for value in hashes.values())
