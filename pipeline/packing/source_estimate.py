"""What an epoch of a source will give, estimated before it is rendered: a pure function of the mixture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pipeline.packing.draws import DocumentDraws, stable_hash
from pipeline.packing.inputs import Chunk, read_chunk
from pipeline.packing.metadata_filter import field_names, read_metadata
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.render import Piece, render
from pipeline.packing.render_task import Renderer
from schemas.document import Document

SAMPLED_CHUNKS = 4
SAMPLED_DOCUMENTS = 64
"""Documents of each sampled chunk. A build goes by these two: others would give other buckets and bytes."""


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
        sample_size: None for the sample that a build goes by.
    """
    renderer = Renderer(mixture)
    return [
        estimate_source(renderer, source, source_chunks, sample_size)
        for source, source_chunks in enumerate(chunks)
    ]


def estimate_source(
    renderer: Renderer, source: int, chunks: Sequence[Chunk], sample_size: int | None
) -> SourceEstimate:
    """Render some documents of some chunks, spread evenly over the source."""
    rules, seed = renderer.sources[source], renderer.mixture.config.seed
    pieces, refused, num_images = list[list[Piece]](), Counter[str](), 0
    where = renderer.mixture.config.sources[source].filters.where
    absent = field_names(where) if where else set()
    for number, document in enumerate(_sample(renderer.mixture, chunks, sample_size)):
        if absent:
            absent -= read_metadata(document.metadata).keys()
        result = rules.apply(document, DocumentDraws(stable_hash(seed, number)))
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


def _sample(mixture: Mixture, chunks: Sequence[Chunk], sample_size: int | None) -> Iterator[Document]:
    if not chunks:
        return
    num_places, num_each = SAMPLED_CHUNKS, SAMPLED_DOCUMENTS
    if sample_size is not None:
        num_places = min(len(chunks), -(-sample_size // SAMPLED_DOCUMENTS))
        num_each = -(-sample_size // num_places)
    for place in np.unique(np.linspace(0, len(chunks) - 1, num_places).astype(int)):
        yield from islice(read_chunk(mixture, chunks[place]), num_each)
