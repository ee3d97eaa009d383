"""A tokenizer that only hashes pixels: it measures the engine without a model, and tests it.

Its codes say nothing about the picture, and its fingerprint says so: its shards cannot be mixed with those
of a real tokenizer.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.batching_encoder import FinishBatch
from schemas.fingerprint import Fingerprint
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE
from tokenizer.resize import IMAGE_SIZE

WORDS_PER_CODE = IMAGE_SIZE * IMAGE_SIZE * 3 // 8 // CODES_PER_IMAGE
WEIGHTS = np.arange(1, 2 * WORDS_PER_CODE, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that a change of one word of pixels changes the sum, and all but once in 8,192 its top bits."""
NUM_DROPPED_BITS = np.uint64(64 - (CODEBOOK_SIZE - 1).bit_length())


class NullEncoder:
    """Codes from a hash of the pixels: as sensitive to a wrong pixel as a test can wish."""

    def __init__(self, preprocessing: Mapping[str, str | int] | None = None) -> None:
        self.fingerprint = null_fingerprint(preprocessing or {})

    def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
        """See ``batching_encoder.ImageEncoder``; the padding costs nothing here."""
        codes = np.stack([_hash_codes(image) for image in images])
        return lambda: codes


def null_fingerprint(preprocessing: Mapping[str, str | int]) -> Fingerprint:
    return Fingerprint(
        {"weights": "null (hash of the pixels by dot products, no model)", "preprocessing": preprocessing}
    )


def _hash_codes(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Each code: 7 rows of pixels, as words, times the weights modulo 2^64, of which the top bits count.

    12 microseconds; a hash of cryptography takes 200, a tenth of what decoding costs.
    """
    words = np.ascontiguousarray(image).reshape(CODES_PER_IMAGE, -1).view("<u8")
    sums = np.einsum("cw,w->c", words, WEIGHTS[: words.shape[1]])
    codes: NDArray[np.uint16] = (sums >> NUM_DROPPED_BITS).astype(np.uint16)
    return codes
