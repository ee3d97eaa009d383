"""What an epoch of a source will give, estimated before it is rendered: a pure function of the mixture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.draws import DocumentDraws, stable_hash
from pipeline.packing.inputs import Chunk, read_chunk
from pipeline.packing.metadata_filter import field_names, read_metadata
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.render import Piece, render
from pipeline.packing.render_task import Renderer
from schemas.document import Document
from schemas.token_shard import rows_within

SAMPLED_CHUNKS = 4
SAMPLED_DOCUMENTS = 64
"""Documents of each sampled chunk. A build goes by these two: others would give other buckets and bytes."""
SPREAD_CHUNKS = 16
"""Chunks at least that a forecast looks into, where a source has so many."""


@dataclass(frozen=True)
class SourceEstimate:
    """What a sample says about one epoch of a source."""

    num_documents: int
    """Documents in its files: exact."""
    kept_fraction: float
    """Of the sample, what filters and template keep."""
    lengths: tuple[int, ...]
    """Ids of the sampled documents that are kept."""
    num_images: int
    """Images of the sampled documents that are kept."""
    num_buckets: int
    """Of a whole epoch."""
    refused: tuple[tuple[str, int], ...] = ()
    """Sampled documents that are not kept, by reason."""
    absent_fields: tuple[str, ...] = ()
    """Fields that ``where`` names and no sampled document has."""
    num_sampled: int = 0

    @property
    def ids_per_document(self) -> float:
        """Mean over the kept ones."""
        return float(np.mean(self.lengths)) if self.lengths else 0.0

    @property
    def num_ids(self) -> float:
        return self.num_documents * self.kept_fraction * self.ids_per_document


def estimate_sources(
    mixture: Mixture, chunks: Sequence[Sequence[Chunk]], sample_size: int | None = None
) -> list[SourceEstimate]:
    """An estimate of every source, from ``sample_size`` of its documents if it has so many.

    Args:
        mixture: whose sources.
        chunks: of each source.
        sample_size: None for the sample that a build goes by; a forecast's is spread over the whole source.
    """
    renderer = Renderer(mixture)
    return [
        estimate_source(renderer, source, source_chunks, sample_size)
        for source, source_chunks in enumerate(chunks)
    ]


def estimate_source(
    renderer: Renderer, source: int, chunks: Sequence[Chunk], sample_size: int | None
) -> SourceEstimate:
    """Render some documents of some chunks."""
    rules = renderer.sources[source]
    pieces, refused, num_images = list[list[Piece]](), Counter[str](), 0
    where = renderer.mixture.config.sources[source].filters.where
    absent = field_names(where) if where else set()
    sample = (
        _head_sample(renderer, chunks)
        if sample_size is None
        else _spread_sample(renderer, source, chunks, sample_size)
    )
    for document, draws in sample:
        if absent:
            absent -= read_metadata(document.metadata).keys()
        result = rules.apply(document, draws)
        if isinstance(result, str):
            refused[result] += 1
        else:
            pieces.append(result)
            num_images += len(document.images)
    lengths = np.diff(render(pieces, renderer.tokenizer, renderer.layout).offsets).tolist()
    num_sampled = len(pieces) + sum(refused.values())
    num_documents = sum(chunk.num_rows for chunk in chunks)
    kept_fraction = len(pieces) / max(num_sampled, 1)
    num_ids = num_documents * kept_fraction * (float(np.mean(lengths)) if lengths else 0.0)
    num_buckets = max(1, round(num_ids / renderer.mixture.config.packing.bucket_ids))
    return SourceEstimate(
        num_documents,
        kept_fraction,
        tuple(lengths),
        num_images,
        num_buckets,
        tuple(sorted(refused.items())),
        tuple(sorted(absent)),
        num_sampled,
    )


def _head_sample(renderer: Renderer, chunks: Sequence[Chunk]) -> Iterator[tuple[Document, DocumentDraws]]:
    """The sample that a build goes by: the first documents of some chunks."""
    if not chunks:
        return
    number, seed = 0, renderer.mixture.config.seed
    for place in np.unique(np.linspace(0, len(chunks) - 1, SAMPLED_CHUNKS).astype(int)):
        for document in islice(read_chunk(renderer.mixture, chunks[place]), SAMPLED_DOCUMENTS):
            yield document, DocumentDraws(stable_hash(seed, number))
            number += 1


def _spread_sample(
    renderer: Renderer, source: int, chunks: Sequence[Chunk], sample_size: int
) -> Iterator[tuple[Document, DocumentDraws]]:
    """Documents from all over the source, each with what it draws in its first epoch."""
    rng = np.random.default_rng([renderer.mixture.config.seed, source])
    for chunk, rows in spread_rows(chunks, sample_size, rng):
        keys = renderer.keys(chunk, 0)[rows]
        for document, key in zip(read_chunk(renderer.mixture, chunk, rows), keys.tolist(), strict=True):
            yield document, DocumentDraws(key)


def spread_rows(
    chunks: Sequence[Chunk], sample_size: int, rng: np.random.Generator
) -> Iterator[tuple[Chunk, NDArray[np.int64]]]:
    """``sample_size`` rows spread over the chunks, one at random of each stretch; all if there are no more.

    Of many chunks only some are read, which lie evenly among the rows. A head would not do: shards are often
    sorted.

    Yields:
        A chunk, and the rows of it, increasing from 0.
    """
    num_places = max(SPREAD_CHUNKS, -(-sample_size // SAMPLED_DOCUMENTS))
    total = sum(chunk.num_rows for chunk in chunks)
    if total > sample_size and len(chunks) > num_places:
        stops = np.cumsum([chunk.num_rows for chunk in chunks])
        middles = (2 * np.arange(num_places) + 1) * total // (2 * num_places)
        chunks = [chunks[place] for place in np.unique(np.searchsorted(stops, middles, "right"))]
        total = sum(chunk.num_rows for chunk in chunks)
    bounds = np.arange(min(sample_size, total) + 1) * total // max(min(sample_size, total), 1)
    rows, start = rng.integers(bounds[:-1], bounds[1:]), 0
    for chunk in chunks:
        if len(within := rows_within(rows, start, chunk.num_rows)):
            yield chunk, within
        start += chunk.num_rows
