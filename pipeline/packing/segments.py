"""How much of each source to render: whole epochs, and a range of keys of the last one.

What a source gives per epoch is known only after rendering; so it is estimated from a sample (a pure function
of the mixture), and a weighted source that turns out too short gets a further segment.
"""

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
from pipeline.packing.render_task import SEGMENT_BITS, WHOLE_EPOCH, Renderer, Segment
from schemas.document import Document
from schemas.mixture import MixtureConfig

SAMPLED_CHUNKS = 4
SAMPLED_DOCUMENTS = 64
"""Documents of each sampled chunk."""
SAFETY = 1.05
"""Weighted sources are rendered for this much more than the estimate says is needed."""
EXTENSION = WHOLE_EPOCH // 16


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

    @property
    def ids_per_document(self) -> float:
        """Mean over the kept ones."""
        return float(np.mean(self.lengths)) if self.lengths else 0.0

    @property
    def num_ids(self) -> float:
        return self.num_documents * self.kept_fraction * self.ids_per_document


def estimate_sources(mixture: Mixture, chunks: Sequence[Sequence[Chunk]]) -> list[SourceEstimate]:
    """An estimate of every source."""
    renderer = Renderer(mixture)
    return [estimate_source(renderer, source, source_chunks) for source, source_chunks in enumerate(chunks)]


def estimate_source(renderer: Renderer, source: int, chunks: Sequence[Chunk]) -> SourceEstimate:
    """Render some documents of some chunks, spread evenly over the source."""
    rules, seed = renderer.sources[source], renderer.mixture.config.seed
    pieces, refused, num_images = list[list[Piece]](), Counter[str](), 0
    where = renderer.mixture.config.sources[source].filters.where
    absent = field_names(where) if where else set()
    for number, document in enumerate(_sample(renderer.mixture, chunks)):
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
    )


def _sample(mixture: Mixture, chunks: Sequence[Chunk]) -> Iterator[Document]:
    if not chunks:
        return
    for place in np.unique(np.linspace(0, len(chunks) - 1, SAMPLED_CHUNKS).astype(int)):
        yield from islice(read_chunk(mixture, chunks[place]), SAMPLED_DOCUMENTS)


def max_ids_of(config: MixtureConfig) -> int | None:
    """Where a weighted mixture ends: ids without padding."""
    if config.output.sequences is not None:
        return config.output.sequences * config.seq_length
    return config.output.ids


def epochs_needed(config: MixtureConfig, estimates: Sequence[SourceEstimate]) -> list[float]:
    """Epochs of each source: as the mixture says, or as its weights and the output's size ask for."""
    max_ids = max_ids_of(config)
    if max_ids is None:
        return [float(source.epochs or 0) for source in config.sources]
    amounts = np.array([source.weight or 0.0 for source in config.sources])
    if config.weight_unit == "documents":
        amounts = amounts * np.array([estimate.ids_per_document for estimate in estimates])
    needed = max_ids * amounts / max(amounts.sum(), 1e-9)
    return [
        float(ids / estimate.num_ids) if estimate.num_ids else 1.0  # one pass tells whether it has anything
        for ids, estimate in zip(needed, estimates, strict=True)
    ]


def first_segments(config: MixtureConfig, estimates: Sequence[SourceEstimate], source: int) -> list[Segment]:
    """What certainly, or by the estimate, is needed of a source."""
    passes = epochs_needed(config, estimates)[source]
    if config.is_weighted:
        passes *= SAFETY
    whole, rest = int(passes), round((passes - int(passes)) * WHOLE_EPOCH)
    estimate = estimates[source]
    segments = [Segment(epoch, 0, WHOLE_EPOCH, estimate.num_buckets) for epoch in range(whole)]
    if rest or not segments:
        segments.append(make_segment(whole, 0, max(rest, 1), estimate))
    return segments


def next_segment(last: Segment, estimate: SourceEstimate) -> Segment:
    """What follows in the shuffled order of a source."""
    if last.stop == WHOLE_EPOCH:
        return make_segment(last.epoch + 1, 0, EXTENSION, estimate)
    return make_segment(last.epoch, last.stop, min(last.stop + EXTENSION, WHOLE_EPOCH), estimate)


def make_segment(epoch: int, start: int, stop: int, estimate: SourceEstimate) -> Segment:
    """A segment whose buckets are as large as those of a whole epoch."""
    return Segment(epoch, start, stop, max(1, round(estimate.num_buckets * (stop - start) / 2**SEGMENT_BITS)))
