"""Rendering, the first stage: one chunk of a source to items, laid out by bucket of the shuffle.

Each row gets a key that is a pure function of (seed, source, file, row, epoch); keys are uniform, the
shuffled order of a source is the order of its keys, and a bucket is a range of keys. So the order does not
depend on chunks, buckets or workers. A partial epoch is a range of keys, too: other rows are not rendered.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.draws import DocumentDraws, row_keys, stable_hash
from pipeline.packing.duplicates import DigestTask, DuplicateList, write_digests
from pipeline.packing.epoch_range import EpochRange
from pipeline.packing.inputs import Chunk, damage_explained, read_chunk
from pipeline.packing.metadata_filter import parse_expression, read_metadata
from pipeline.packing.mixture_file import Mixture, template_settings
from pipeline.packing.pair_columns import PairColumns, is_plain, read_pair_columns, render_pairs
from pipeline.packing.render import Piece, RenderedBatch, render, split_points
from pipeline.packing.rendered import Items, items_schema, write_items
from pipeline.packing.templates import TEMPLATES, DocumentRefusedError
from schemas.document import Document, ImageSegment
from schemas.mixture import FilterConfig, MixtureError
from schemas.vocabulary import IMAGE_SPAN_LENGTH, VocabularyLayout
from tokenizer.text_tokenizer import TextTokenizer

_ANY = DocumentDraws(0)
"""Whether a document is refused does not depend on what it draws."""
MAX_PARTS = 1 << 16
"""Of a document that is longer than a row: origins number them in uint16."""
PIECES_PER_CALL = 1024
"""Texts and images that are encoded and laid out in one call: more fall out of the caches."""


@dataclass(frozen=True)
class RenderTask:
    """One chunk in a range of an epoch."""

    chunk: Chunk
    epoch_range: EpochRange
    output: Path
    duplicates: Path | None = None


class Renderer:
    """What all render tasks of a mixture share."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.tokenizer: TextTokenizer = mixture.load_tokenizer()
        self.layout = vocabulary_layout(mixture, self.tokenizer)
        self.sources = [_SourceRules(mixture, index) for index in range(len(mixture.config.sources))]

    def run(self, task: RenderTask | DigestTask) -> None:
        """Do a task of either kind."""
        if isinstance(task, RenderTask):
            self.render(task)
        else:
            rules = self.sources[task.chunk.source]
            write_digests(
                self.mixture, task, lambda document: not isinstance(rules.apply(document, _ANY), str)
            )

    def render(self, task: RenderTask) -> None:
        """Render a chunk and write its items by bucket."""
        counts: Counter[str] = Counter()
        batches = list(self._render_chunk(task, counts))
        schema = items_schema(self.layout.id_dtype)
        num_buckets = task.epoch_range.num_buckets
        groups = [_empty_items(self.layout)] * num_buckets
        if batches:
            items = Items.concatenate(batches)
            groups = [items] if num_buckets == 1 else _deal(items, task.epoch_range)
        write_items(task.output, groups, dict(counts), schema)

    def keys(self, chunk: Chunk, epoch: int) -> NDArray[np.uint64]:
        """(num_rows,) the key of each row in an epoch."""
        name = self.mixture.files[chunk.source][chunk.file]
        stream = stable_hash(self.mixture.config.seed, self.sources[chunk.source].name, name, epoch)
        return row_keys(stream, chunk.first_row, chunk.num_rows)

    def _read_pairs(self, chunk: Chunk) -> PairColumns | None:
        """The chunk as plain pairs, if its source and all that it holds are such."""
        if not self.sources[chunk.source].is_plain_pair:
            return None
        path = self.mixture.path(self.mixture.files[chunk.source][chunk.file])
        with damage_explained(path):
            return read_pair_columns(path, chunk.row_groups)

    def _render_chunk(self, task: RenderTask, counts: Counter[str]) -> Iterator[Items]:
        chunk, rules = task.chunk, self.sources[task.chunk.source]
        keys = self.keys(chunk, task.epoch_range.epoch)
        is_wanted = task.epoch_range.buckets(keys) >= 0
        duplicates = DuplicateList(task.duplicates).rows(chunk) if task.duplicates else set[int]()
        counts["documents_in"] += int(np.count_nonzero(is_wanted))
        if (pairs := self._read_pairs(chunk)) is not None:
            yield from self._render_pairs(pairs, is_wanted, keys, duplicates, task, counts)
            return
        pieces, rows, num_pieces = list[list[Piece]](), list[int](), 0
        for index, document in enumerate(read_chunk(self.mixture, chunk)):
            if not is_wanted[index]:
                continue
            if chunk.first_row + index in duplicates:
                counts["refused:duplicate"] += 1
                continue
            result = rules.apply(document, DocumentDraws(int(keys[index])))
            if isinstance(result, str):
                counts[f"refused:{result}"] += 1
                continue
            pieces.append(result)
            rows.append(index)
            num_pieces += len(result)
            if num_pieces >= PIECES_PER_CALL:
                yield self._render_pieces(pieces, rows, keys, task, counts)
                pieces, rows, num_pieces = [], [], 0
        if pieces:
            yield self._render_pieces(pieces, rows, keys, task, counts)

    def _render_pieces(
        self,
        pieces: list[list[Piece]],
        rows: list[int],
        keys: NDArray[np.uint64],
        task: RenderTask,
        counts: Counter[str],
    ) -> Items:
        batch = render(pieces, self.tokenizer, self.layout)
        return self._to_items(batch, np.array(rows), keys, task, counts)

    def _render_pairs(
        self,
        pairs: PairColumns,
        is_wanted: NDArray[np.bool_],
        keys: NDArray[np.uint64],
        duplicates: set[int],
        task: RenderTask,
        counts: Counter[str],
    ) -> Iterator[Items]:
        if duplicates:
            is_duplicate = np.isin(np.arange(len(pairs)) + task.chunk.first_row, list(duplicates))
            counts["refused:duplicate"] += int(np.count_nonzero(is_duplicate & is_wanted))
            is_wanted = is_wanted & ~is_duplicate
        wanted, settings = np.flatnonzero(is_wanted), self.sources[task.chunk.source].settings
        for start in range(0, len(wanted), PIECES_PER_CALL):
            some = wanted[start : start + PIECES_PER_CALL]
            batch, rows = render_pairs(pairs, some, keys, settings, self.tokenizer, self.layout, counts)
            if len(rows):
                yield self._to_items(batch, rows, keys, task, counts)

    def _to_items(
        self,
        batch: RenderedBatch,
        rows: NDArray[np.int64],
        keys: NDArray[np.uint64],
        task: RenderTask,
        counts: Counter[str],
    ) -> Items:
        seq_length = self.mixture.config.seq_length
        batch, rows = refuse_endless(batch, rows, seq_length, counts)
        offsets, documents, parts = split_long(batch, seq_length, self.layout)
        mask = batch.loss_mask.copy()
        mask[offsets[:-1]] = False  # nothing predicts the first id of a continuation
        counts["documents_rendered"] += len(rows)
        counts["ids"] += len(batch.ids)
        counts["documents_split"] += int(np.count_nonzero(parts == 1))
        row_indices = rows[documents]
        num_items = len(documents)
        return Items(
            batch.ids.astype(self.layout.id_dtype),
            mask,
            offsets,
            keys[row_indices],
            np.full(num_items, task.chunk.file, np.uint32),
            (row_indices + task.chunk.first_row).astype(np.uint32),
            np.full(num_items, task.epoch_range.epoch, np.uint16),
            parts,
        )


class _SourceRules:
    """Filters and template of one source."""

    def __init__(self, mixture: Mixture, index: int) -> None:
        source = mixture.config.sources[index]
        self.name = source.name
        self._template = TEMPLATES[source.template][0]
        self.settings = template_settings(source)
        self._refuse = make_filter(source.filters)
        self.is_plain_pair = (
            source.format == "token_shards" and self._refuse is None and is_plain(self.settings)
        )

    def apply(self, document: Document, draws: DocumentDraws) -> list[Piece] | str:
        """Pieces of the document, or the reason why it is refused."""
        if self._refuse is not None and (reason := self._refuse(document)):
            return reason
        try:
            return self._template(document, self.settings, draws)
        except DocumentRefusedError as refusal:
            return refusal.reason.value


FILTER_PREFIX = "filter_"
"""Of the reasons that `make_filter` gives: the mixture asked for these documents to be left out."""


def make_filter(config: FilterConfig) -> Callable[[Document], str | None] | None:
    """A function from a document to the reason to refuse it; None if nothing is filtered."""
    if config == FilterConfig():
        return None
    expression = parse_expression(config.where, "filters.where") if config.where else None

    def refuse(document: Document) -> str | None:
        num_images = sum(isinstance(segment, ImageSegment) for segment in document.segments)
        if config.min_images is not None and num_images < config.min_images:
            return "filter_too_few_images"
        if config.max_images is not None and num_images > config.max_images:
            return "filter_too_many_images"
        num_characters = sum(map(len, document.texts))
        if config.min_text_characters is not None and num_characters < config.min_text_characters:
            return "filter_text_too_short"
        if config.max_text_characters is not None and num_characters > config.max_text_characters:
            return "filter_text_too_long"
        if expression is not None and not expression(read_metadata(document.metadata)):
            return "filter_where"
        return None

    return refuse


def refuse_endless(
    batch: RenderedBatch, rows: NDArray[np.int64], seq_length: int, counts: Counter[str]
) -> tuple[RenderedBatch, NDArray[np.int64]]:
    """The documents whose parts can be numbered, and their rows; the others are counted as refused."""
    lengths = np.diff(batch.offsets)
    are_kept = lengths <= MAX_PARTS * (seq_length - IMAGE_SPAN_LENGTH + 1)  # what a part has at least
    if np.all(are_kept):
        return batch, rows
    counts["refused:too_many_parts"] += int(np.count_nonzero(~are_kept))
    is_kept = np.repeat(are_kept, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[are_kept])])
    return RenderedBatch(batch.ids[is_kept], batch.loss_mask[is_kept], offsets), rows[are_kept]


def split_long(
    batch: RenderedBatch, seq_length: int, layout: VocabularyLayout
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
    """Offsets of items, the document of each, and its part number; only longer documents are split."""
    lengths = np.diff(batch.offsets)
    too_long = np.flatnonzero(lengths > seq_length)
    if not len(too_long):
        return batch.offsets, np.arange(len(lengths)), np.zeros(len(lengths), np.uint16)
    bounds, documents, parts = [batch.offsets], [np.arange(len(lengths))], [np.zeros(len(lengths), np.int64)]
    for document in too_long:
        start, stop = batch.offsets[document : document + 2]
        inner = np.array(split_points(batch.ids[start:stop], seq_length, layout)[1:-1]) + start
        bounds.append(inner)
        documents.append(np.full(len(inner), document))
        parts.append(np.arange(1, len(inner) + 1))
    all_documents, all_parts = np.concatenate(documents), np.concatenate(parts)
    order = np.lexsort((all_parts, all_documents))
    return np.sort(np.concatenate(bounds)), all_documents[order], all_parts[order].astype(np.uint16)


def vocabulary_layout(mixture: Mixture, tokenizer: TextTokenizer) -> VocabularyLayout:
    """Where image ids begin: behind the tokenizer's ids, or behind those the mixture file names.

    Raises:
        MixtureError: if the mixture file names fewer than the tokenizer has.
    """
    base = mixture.config.text_tokenizer.base_vocabulary
    if base is not None and base < tokenizer.base_size:
        raise MixtureError(
            f"text_tokenizer.base_vocabulary {base} is smaller than the tokenizer's {tokenizer.base_size}"
            " ids: image ids would fall on text ids. Give the rows of the language model's embedding"
            " (vocab_size in its config.json), or leave the setting out"
        )
    return VocabularyLayout(base or tokenizer.base_size)


def _deal(items: Items, epoch_range: EpochRange) -> list[Items]:
    """Items by bucket, in their order."""
    buckets = epoch_range.buckets(items.keys)
    order = np.argsort(buckets, kind="stable")
    dealt = items.take(order)
    bounds = np.searchsorted(buckets[order], np.arange(epoch_range.num_buckets + 1))
    return [dealt.slice(bounds[i], bounds[i + 1]) for i in range(epoch_range.num_buckets)]


def _empty_items(layout: VocabularyLayout) -> Items:
    integers: list[Any] = [
        np.empty(0, dtype) for dtype in (np.uint64, np.uint32, np.uint32, np.uint16, np.uint16)
    ]
    return Items(np.empty(0, layout.id_dtype), np.empty(0, np.bool_), np.zeros(1, np.int64), *integers)
