"""Prompts and answers: text and images to ids and back."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.document import Codes, check_codes
from schemas.vocabulary import CODES_PER_IMAGE, VocabularyLayout
from tokenizer.text_tokenizer import TextTokenizer

Content = str | Codes
"""A run of text, or the (32,) uint16 codes of one image."""


def encode_prompt(
    contents: Sequence[Content], tokenizer: TextTokenizer, layout: VocabularyLayout
) -> NDArray[np.int64]:
    """Ids of BOS and the contents, each text encoded by itself as packing does; (num_ids,) int64.

    Raises:
        ValueError: for codes that are not 32 of 0..8191.
    """
    parts = [np.array([tokenizer.bos_id])]
    for content in contents:
        if isinstance(content, str):
            parts.append(tokenizer.encode(content))
        else:
            check_codes(content)
            parts.append(layout.image_span(content))
    return np.concatenate([part.astype(np.int64) for part in parts])


def decode_contents(
    ids: Sequence[int] | NDArray[np.integer], tokenizer: TextTokenizer, layout: VocabularyLayout
) -> list[Content]:
    """Text and images in order; an image that was cut short is left out."""
    contents: list[Content] = []
    text: list[int] = []
    codes: list[int] = []

    def end_text() -> None:
        if text and (decoded := tokenizer.decode(text)):
            contents.append(decoded)
        text.clear()

    for value in map(int, ids):
        if value < layout.base_size:
            if value < tokenizer.base_size:  # a model may have more rows than its tokenizer has ids
                text.append(value)
        elif value < layout.img_start_id:
            codes.append(value - layout.image_code_offset)
        else:
            end_text()
            if value == layout.img_end_id and len(codes) == CODES_PER_IMAGE:
                contents.append(np.array(codes, np.uint16))
            codes.clear()
    end_text()
    return contents
