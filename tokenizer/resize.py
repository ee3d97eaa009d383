"""The canonical squash of an RGB picture to 224x224: Pillow's classic fixed-point resampling, bit for bit.

The released tokenizer and its codes were made with Pillow before version 13, which resamples rows first,
rounds to 8 bits, then resamples columns. Pillow 12.2 swaps the passes when the height is over 100 times the
width, Pillow 13 on every tall picture; that changes pixels and codes, so the order is ours. Arithmetic of one
pass (learned from Pillow's documentation and `src/libImaging/Resample.c`):

* output pixel `i` sees the input around `(i + 0.5) * scale`, within `support * max(scale, 1)` (antialiased);
* weights are float64, normalised to sum 1, then rounded half away from zero to 22 fractional bits;
* the weighted sum is an int32 that starts at one half, is shifted right by 22 and clipped to 0..255.

Two implementations of the same result: compiled kernels (numba, vectorised by LLVM, without the GIL), and,
where numba is missing, Pillow asked for one pass at a time, which is exact on every Pillow.
`benchmarks/decode.py` measures both.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenizer.compiled import compiled

IMAGE_SIZE = 224
Filter = Literal["bicubic", "bilinear"]
FILTERS: tuple[Filter, ...] = ("bicubic", "bilinear")
Pixels = npt.NDArray[np.uint8]

PRECISION_BITS = 32 - 8 - 2  # 8 bits of pixel, 2 bits of headroom for weights beyond 0..1
HALF = 1 << (PRECISION_BITS - 1)
TAPS_PER_STEP = 4  # taps accumulated per visit of the sums; weights are padded with zeros to a multiple of it
ROWS_PER_BLOCK = 32  # rows resampled together: 32 * 3 channels fill the vector registers


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled where numba is installed, else as it is."""
    return compiled(function) or function


@kernel
def filter_weight(distance: float, is_bicubic: bool) -> float:
    """Weight at a distance in filter units: Keys' cubic with a = -0.5 (support 2), or a tent (support 1)."""
    x = abs(distance)
    if not is_bicubic:
        return 1.0 - x if x < 1.0 else 0.0
    if x < 1.0:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@kernel
def pass_weights(in_size: int, out_size: int, is_bicubic: bool) -> tuple[Any, Any, Any]:
    """Fixed-point weights of one pass.

    Returns:
        starts (out_size,) int64, first input index; steps (out_size,) int64, taps in units of TAPS_PER_STEP;
        weights (out_size, taps) int32, zero beyond the support.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = (2.0 if is_bicubic else 1.0) * filter_scale
    max_taps = int(np.ceil(support)) * 2 + 1 + TAPS_PER_STEP
    starts = np.zeros(out_size, np.int64)
    steps = np.zeros(out_size, np.int64)
    weights = np.zeros((out_size, max_taps), np.int32)
    raw = np.zeros(max_taps, np.float64)
    for i in range(out_size):
        center = (i + 0.5) * scale
        start = max(int(center - support + 0.5), 0)
        taps = min(int(center + support + 0.5), in_size) - start
        total = 0.0
        for tap in range(taps):
            raw[tap] = filter_weight((tap + start - center + 0.5) * (1.0 / filter_scale), is_bicubic)
            total += raw[tap]
        for tap in range(taps):
            weight = raw[tap] / total * (1 << PRECISION_BITS)
            weights[i, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[i] = start
        steps[i] = (taps + TAPS_PER_STEP - 1) // TAPS_PER_STEP
    return starts, steps, weights


@kernel
def weighted_rows(rows: Any, start: int, steps: int, weights: Any, sums: Any) -> None:
    """sums[:] = clip8(sum over taps of weights[tap] * rows[start + tap]).

    rows (n, width) uint8; weights (taps,) int32; sums (width,) int32.
    Both passes come down to this: it runs along contiguous memory, so LLVM turns it into vector code.
    """
    width = sums.shape[0]
    for j in range(width):
        sums[j] = HALF
    for step in range(steps):
        tap = step * TAPS_PER_STEP
        w0, w1, w2, w3 = weights[tap], weights[tap + 1], weights[tap + 2], weights[tap + 3]
        r0, r1 = rows[start + tap], rows[start + tap + 1]
        r2, r3 = rows[start + tap + 2], rows[start + tap + 3]
        for j in range(width):
            sums[j] += (
                w0 * np.int32(r0[j]) + w1 * np.int32(r1[j]) + w2 * np.int32(r2[j]) + w3 * np.int32(r3[j])
            )
    for j in range(width):
        sums[j] = min(max(sums[j] >> PRECISION_BITS, 0), 255)


@kernel
def horizontal_pass(image: Any, out_size: int, is_bicubic: bool) -> Any:
    """(h, w, 3) -> (h + TAPS_PER_STEP, out_size * 3) uint8; the last rows are padding for the vertical pass.

    Blocks of rows are transposed first, so that taps become rows of contiguous pixels.
    """
    height, width, _ = image.shape
    starts, steps, weights = pass_weights(width, out_size, is_bicubic)
    result = np.zeros((height + TAPS_PER_STEP, out_size * 3), np.uint8)
    block = np.zeros((width + TAPS_PER_STEP, ROWS_PER_BLOCK * 3), np.uint8)
    sums = np.zeros(ROWS_PER_BLOCK * 3, np.int32)
    for top in range(0, height, ROWS_PER_BLOCK):
        num_rows = min(ROWS_PER_BLOCK, height - top)
        for row in range(num_rows):
            for x in range(width):
                for channel in range(3):
                    block[x, row * 3 + channel] = image[top + row, x, channel]
        for i in range(out_size):
            weighted_rows(block, starts[i], steps[i], weights[i], sums)
            for row in range(num_rows):
                for channel in range(3):
                    result[top + row, i * 3 + channel] = sums[row * 3 + channel]
    return result


@kernel
def vertical_pass(rows: Any, height: int, out_size: int, is_bicubic: bool) -> Any:
    """(height + TAPS_PER_STEP, width * 3) -> (out_size, width * 3) uint8."""
    starts, steps, weights = pass_weights(height, out_size, is_bicubic)
    result = np.empty((out_size, rows.shape[1]), np.uint8)
    sums = np.zeros(rows.shape[1], np.int32)
    for i in range(out_size):
        weighted_rows(rows, starts[i], steps[i], weights[i], sums)
        for j in range(sums.shape[0]):
            result[i, j] = sums[j]
    return result


def squash_compiled(image: Pixels, filter_name: Filter, size: int = IMAGE_SIZE) -> Pixels:
    """The squash by our kernels; see `squash`."""
    is_bicubic = filter_name == "bicubic"
    rows = horizontal_pass(image, size, is_bicubic)
    squashed: Pixels = vertical_pass(rows, image.shape[0], size, is_bicubic).reshape(size, size, 3)
    return squashed


def squash_with_pillow(image: Pixels, filter_name: Filter, size: int = IMAGE_SIZE) -> Pixels:
    """The squash by Pillow, rows then columns in two calls, so that Pillow has no order to choose."""
    resample = Image.Resampling.BICUBIC if filter_name == "bicubic" else Image.Resampling.BILINEAR
    rows = Image.fromarray(image).resize((size, image.shape[0]), resample)
    return np.asarray(rows.resize((size, size), resample))


def squash(image: Pixels, filter_name: Filter) -> Pixels:
    """Resize without keeping the aspect ratio, with the pixels of Pillow before 13.

    Args:
        image: (h, w, 3) uint8, C-contiguous, h and w at least 1.
        filter_name: `bicubic` (the release's image processor) or `bilinear` (its bulk tokenization script).

    Returns:
        (224, 224, 3) uint8.

    Raises:
        ValueError: if the array is not (h, w, 3) uint8 or the filter has another name.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"squash takes a (h, w, 3) uint8 array, got {image.dtype} {image.shape}")
    if filter_name not in FILTERS:
        raise ValueError(f"filter must be one of {', '.join(FILTERS)}, got {filter_name!r}")
    if isinstance(filter_weight, FunctionType):  # not compiled: kernels would take seconds
        return squash_with_pillow(image, filter_name)
    return squash_compiled(np.ascontiguousarray(image), filter_name)
