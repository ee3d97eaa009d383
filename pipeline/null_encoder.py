"""A tokenizer that only hashes pixels: it measures the engine without a model, and tests it.

Its codes say nothing about the picture, and its fingerprint says so: its shards cannot be mixed with those
of a real tokenizer.
"""

import hashlib

import numpy as np

from pipeline.batching_encoder import FinishBatch
from schemas.fingerprint import Fingerprint
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE


class NullEncoder:
    """Codes from a hash of the pixels: as sensitive to a wrong pixel as a test can wish."""

    def __init__(self, preprocessing: dict[str, str] | None = None) -> None:
        self.fingerprint = null_fingerprint(preprocessing or {})

    def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
        """See ``batching_encoder.ImageEncoder``; the padding costs nothing here."""
        codes = np.stack([_hash_codes(image) for image in images])
        return lambda: codes


def null_fingerprint(preprocessing: dict[str, str]) -> Fingerprint:
    return Fingerprint({"weights": "null (hash of the pixels, no model)", "preprocessing": preprocessing})


def _hash_codes(image: np.ndarray) -> np.ndarray:
    # blake2b gives 64 bytes at most: exactly 32 numbers of 16 bits, of which 13 count.
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=2 * CODES_PER_IMAGE).digest()
    return np.frombuffer(digest, "<u2").astype(np.uint16) % CODEBOOK_SIZE
