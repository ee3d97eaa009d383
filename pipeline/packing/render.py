"""From pieces of documents to ids and loss masks, many documents at once.

A template turns a document into pieces: runs of text and images, each learned or not. Here the texts of a
whole batch are encoded in one call and everything is laid into one flat array, without Python work per id.
Images enter as ids, never through text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.document import Codes
from schemas.vocabulary import CODES_PER_IMAGE, IMAGE_SPAN_LENGTH, VocabularyLayout
from tokenizer.text_tokenizer import TextTokenizer

BOS, TEXT, IMAGE, EOS = range(4)


class Piece(NamedTuple):
    """One run of a rendered document."""

    content: str | Codes | None
    """Text, encoded by itself; the (32,) codes of an image; None: an EOS within the document."""
    is_learned: bool
    is_start_learned: bool = True
    """Images only: whether ``<img>`` is learned where the image is."""


END_OF_ANSWER = Piece(None, True)


class RenderedBatch(NamedTuple):
    """Documents in a row."""

    ids: NDArray[np.uint32]
    """(num_ids,) document after document, each with its BOS and EOS."""
    loss_mask: NDArray[np.bool_]
    """(num_ids,) never set on the first id of a document."""
    offsets: NDArray[np.int64]
    """(num_documents + 1,) where each document starts in ``ids``."""

    def document(self, index: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.loss_mask[span]


def render(
    documents: Sequence[Sequence[Piece]], tokenizer: TextTokenizer, layout: VocabularyLayout
) -> RenderedBatch:
    """Ids and loss masks of documents: BOS, the pieces, EOS. EOS is learned, BOS cannot be."""
    kinds: list[int] = []
    learned: list[bool] = []
    starts_learned: list[bool] = []
    texts: list[str] = []
    images: list[Codes] = []
    for pieces in documents:
        kinds.append(BOS)
        learned.append(False)
        for content, is_learned, is_start_learned in pieces:
            learned.append(is_learned)
            if isinstance(content, str):
                kinds.append(TEXT)
                texts.append(content)
            elif content is None:
                kinds.append(EOS)
            else:
                kinds.append(IMAGE)
                images.append(content)
                starts_learned.append(is_learned and is_start_learned)
        kinds.append(EOS)
        learned.append(True)
    return lay_out(
        np.array(kinds, np.int8),
        np.array(learned, np.bool_),
        texts,
        np.stack(images) if images else np.empty((0, CODES_PER_IMAGE), np.uint16),
        np.array(starts_learned, np.bool_),
        tokenizer,
        layout,
    )


def lay_out(
    kinds: NDArray[np.int8],
    learned: NDArray[np.bool_],
    texts: Sequence[str],
    images: NDArray[np.uint16],
    starts_learned: NDArray[np.bool_],
    tokenizer: TextTokenizer,
    layout: VocabularyLayout,
) -> RenderedBatch:
    """One flat array of ids from pieces in a row.

    Args:
        kinds: (num_pieces,) int8, BOS, TEXT, IMAGE or EOS.
        learned: (num_pieces,)
        texts: of the text pieces, in order.
        images: (num_images, 32) codes of the image pieces, in order.
        starts_learned: (num_images,) whether ``<img>`` is learned.
    """
    text_ids, text_lengths = tokenizer.encode_batch(texts)
    if text_ids.size and int(text_ids.max()) >= layout.base_size:
        raise ValueError(
            f"text id {int(text_ids.max())} is outside the base vocabulary of {layout.base_size}"
        )
    lengths = np.ones(len(kinds), np.int64)
    lengths[kinds == TEXT] = text_lengths
    lengths[kinds == IMAGE] = IMAGE_SPAN_LENGTH
    ends = np.cumsum(lengths)
    starts = ends - lengths
    ids = np.empty(int(ends[-1]) if len(ends) else 0, np.uint32)
    is_text = np.repeat(kinds == TEXT, lengths)
    ids[is_text] = text_ids
    image_starts = starts[kinds == IMAGE]
    ids[image_starts[:, None] + np.arange(IMAGE_SPAN_LENGTH)] = layout.image_spans(images)
    ids[starts[kinds == BOS]] = tokenizer.bos_id
    ids[starts[kinds == EOS]] = tokenizer.eos_id
    mask = np.repeat(learned, lengths)
    mask[image_starts] = starts_learned
    offsets = np.append(starts[kinds == BOS], ends[-1:] if len(ends) else [0])
    return RenderedBatch(ids, mask, offsets)


def split_points(ids: NDArray[np.uint32], seq_length: int, layout: VocabularyLayout) -> list[int]:
    """Where to cut a document so that no part exceeds ``seq_length`` and no image span is cut.

    Parts are as long as they can be; the bounds include 0 and ``len(ids)``.

    Raises:
        ValueError: if ``seq_length`` is shorter than an image span.
    """
    if seq_length < IMAGE_SPAN_LENGTH:
        raise ValueError(f"seq_length {seq_length} is shorter than an image span of {IMAGE_SPAN_LENGTH} ids")
    span_starts = np.flatnonzero(ids == layout.img_start_id)
    bounds = [0]
    while len(ids) - bounds[-1] > seq_length:
        cut = bounds[-1] + seq_length
        before = int(np.searchsorted(span_starts, cut)) - 1
        if before >= 0 and span_starts[before] < cut < span_starts[before] + IMAGE_SPAN_LENGTH:
            cut = int(span_starts[before])
        bounds.append(cut)
    return [*bounds, len(ids)]
