"""Where SEED codes and image markers live in a language model's vocabulary.

Layout: base vocabulary, then 8192 codes, then ``<img>`` and ``</img>``; the embedding table is padded
to a multiple of 128 so that tensor parallelism divides it (Megatron's ``make-vocab-size-divisible-by``).
For LLaMA's 32,000 base ids: code c is id 32,000 + c, ``<img>`` 40,192, ``</img>`` 40,193, table 40,320.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODEBOOK_SIZE = 8192
"""Entries of the SEED codebook (paper section 3.1.2)."""
CODES_PER_IMAGE = 32
"""Causal queries, hence codes, of one image."""
IMAGE_SPAN_LENGTH = CODES_PER_IMAGE + 2
"""Ids of one image span: ``<img>``, 32 codes, ``</img>``. Never cut."""
NUM_ADDED_IDS = CODEBOOK_SIZE + 2
VOCABULARY_PADDING = 128


@dataclass(frozen=True)
class VocabularyLayout:
    """The ids of a language model that reads and draws SEED codes.

    Raises:
        ValueError: if ``base_size`` is not positive.
    """

    base_size: int = 32_000
    """Ids of the text tokenizer, its own special tokens included."""

    def __post_init__(self) -> None:
        if self.base_size <= 0:
            raise ValueError(f"vocabulary.base_size must be positive, got {self.base_size}")

    @property
    def image_code_offset(self) -> int:
        """Code c is id ``image_code_offset + c``."""
        return self.base_size

    @property
    def img_start_id(self) -> int:
        return self.base_size + CODEBOOK_SIZE

    @property
    def img_end_id(self) -> int:
        return self.img_start_id + 1

    @property
    def size(self) -> int:
        """Ids in use."""
        return self.base_size + NUM_ADDED_IDS

    @property
    def padded_size(self) -> int:
        """Rows of the embedding table: ``size`` rounded up to a multiple of 128."""
        return -(-self.size // VOCABULARY_PADDING) * VOCABULARY_PADDING

    @property
    def id_dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.size <= 1 << 16 else np.uint32

    def image_span(self, codes: NDArray[np.uint16]) -> NDArray[np.uint32]:
        """Ids of one image: (34,) uint32 from (32,) codes; the caller narrows to ``id_dtype``.

        Raises:
            ValueError: if there are not 32 codes, or one is not in the codebook: it would become a marker.
        """
        if codes.shape != (CODES_PER_IMAGE,):
            raise ValueError(f"an image has {CODES_PER_IMAGE} codes, got shape {codes.shape}")
        if codes.min() < 0 or codes.max() >= CODEBOOK_SIZE:
            raise ValueError(f"codes are 0..{CODEBOOK_SIZE - 1}, got {codes.min()}..{codes.max()}")
        span: NDArray[np.uint32] = self.image_spans(codes[None])[0]
        return span

    def image_spans(self, codes: NDArray[np.uint16]) -> NDArray[np.uint32]:
        """Ids of many images, whose codes were checked when they were read: (I, 34) uint32 from (I, 32)."""
        spans = np.empty((len(codes), IMAGE_SPAN_LENGTH), np.uint32)
        spans[:, 0] = self.img_start_id
        spans[:, 1:-1] = codes
        spans[:, 1:-1] += np.uint32(self.image_code_offset)
        spans[:, -1] = self.img_end_id
        return spans

    def is_image_id(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where an id is a code, ``<img>`` or ``</img>``."""
        return (ids >= self.image_code_offset) & (ids <= self.img_end_id)

    def is_code_id(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where an id is a code."""
        return (ids >= self.image_code_offset) & (ids < self.img_start_id)
