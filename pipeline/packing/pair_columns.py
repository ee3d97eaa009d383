"""Pairs, column by column: what ``templates.pair`` does, without an object per document.

Pairs are most of a mixture's documents and the shortest; as objects they take three times as long to read
and to lay out as to tokenize. Here a chunk of plain pairs goes from Arrow columns to arrays directly. Chunks
with anything else in them, and settings beyond the direction, take the general way; both ways give the same
(``tests/packing/test_pair_columns.py``).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.packing.draws import first_uniforms
from pipeline.packing.render import BOS, EOS, IMAGE, TEXT, RenderedBatch, lay_out
from pipeline.packing.template_settings import PairSettings
from pipeline.packing.templates import Refusal
from schemas.token_shard import KIND_IMAGE, SCHEMA, errors_named
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE, VocabularyLayout
from tokenizer.text_tokenizer import TextTokenizer

WORDS_PATTERN = (
    r"[0-9A-Za-z]|[^\x00-\x7F\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
)
"""``templates.has_words`` as a regular expression."""


@dataclass(frozen=True)
class PairColumns:
    """The pairs of a chunk."""

    captions: NDArray[np.object_]
    """(num_pairs,) str"""
    have_words: NDArray[np.bool_]
    """(num_pairs,) what ``templates.has_words`` says of the caption."""
    codes: NDArray[np.uint16]
    """(num_pairs, 32)"""

    def __len__(self) -> int:
        return len(self.captions)


def is_plain(settings: object) -> bool:
    """Whether a template's settings are those of pairs that this file handles."""
    return (
        isinstance(settings, PairSettings)
        and settings.prompts == ("{caption}",)
        and settings.caption_field is None
    )


def read_pair_columns(path: Path, row_groups: tuple[int, ...]) -> PairColumns | None:
    """Row groups of a token shard; None if a document in them is not one text and one image.

    Raises:
        TokenShardError: if the file is damaged.
    """
    with errors_named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(SCHEMA):
            return None
        table = file.read_row_groups(list(row_groups), columns=["kinds", "texts", "codes"])
    kinds, texts, codes = (table.column(name).combine_chunks() for name in table.column_names)
    num_rows = len(kinds)
    values = codes.values.to_numpy()
    shapes = [column.offsets.to_numpy() for column in (kinds, texts, codes)]
    if any(
        not np.array_equal(np.diff(offsets), np.full(num_rows, size))
        for offsets, size in zip(shapes, (2, 1, CODES_PER_IMAGE), strict=True)
    ):
        return None
    is_image = kinds.values.to_numpy() == KIND_IMAGE
    if np.any(is_image.reshape(-1, 2).sum(axis=1) != 1) or (values.size and values.max() >= CODEBOOK_SIZE):
        return None
    captions = texts.values
    have_words = pc.match_substring_regex(captions, WORDS_PATTERN).to_numpy(zero_copy_only=False)
    return PairColumns(
        captions.to_numpy(zero_copy_only=False), have_words, values.reshape(-1, CODES_PER_IMAGE)
    )


def render_pairs(
    pairs: PairColumns,
    wanted: NDArray[np.int64],
    keys: NDArray[np.uint64],
    settings: PairSettings,
    tokenizer: TextTokenizer,
    layout: VocabularyLayout,
    counts: Counter[str],
) -> tuple[RenderedBatch, NDArray[np.int64]]:
    """Ids of the wanted pairs that have a caption, and which rows these are."""
    rows = wanted[pairs.have_words[wanted]]
    if num_empty := len(wanted) - len(rows):
        counts[f"refused:{Refusal.NO_TEXT}"] += num_empty
    is_image_first = first_uniforms(keys[rows]) < settings.reverse_ratio
    kinds = np.empty((len(rows), 4), np.int8)
    kinds[:, 0], kinds[:, 3] = BOS, EOS
    kinds[:, 1], kinds[:, 2] = np.where(is_image_first, IMAGE, TEXT), np.where(is_image_first, TEXT, IMAGE)
    is_first_learned = settings.learn == "all"
    learned = np.tile(np.array([False, is_first_learned, True, True]), (len(rows), 1))
    batch = lay_out(
        kinds.ravel(),
        learned.ravel(),
        pairs.captions[rows].tolist(),
        pairs.codes[rows],
        np.full(len(rows), is_first_learned),
        tokenizer,
        layout,
    )
    return batch, rows
