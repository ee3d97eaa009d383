"""What a build would give, in seconds: from the footers of the inputs and a sample of their documents."""

from dataclasses import dataclass

import numpy as np

from pipeline.packing.best_fit import assign_rows, count_rows
from pipeline.packing.inputs import check_codebooks, list_chunks
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.ranges_to_render import epochs_needed
from pipeline.packing.source_estimate import SourceEstimate, estimate_sources
from schemas.mixture import MixtureConfig

SAMPLE_SIZE = 256


@dataclass(frozen=True)
class SourceForecast:
    """One source of the forecast; counts are of its files, amounts of what the build would take."""

    name: str
    documents: int
    kept_fraction: float
    ids_per_document: float
    images_per_document: float
    epochs: float
    ids: float
    share: float
    refused: tuple[tuple[str, int], ...]
    """In the sample, by reason."""
    absent_fields: tuple[str, ...] = ()
    """Fields that ``where`` names and no document of the sample has."""
    num_sampled: int = 0

    @property
    def is_certain(self) -> bool:
        """Whether the sample is the whole source."""
        return self.num_sampled >= self.documents


@dataclass(frozen=True)
class Forecast:
    """The whole of it."""

    sources: tuple[SourceForecast, ...]
    seq_length: int
    padding_fraction: float
    documents_split_fraction: float

    @property
    def ids(self) -> float:
        return sum(source.ids for source in self.sources)

    @property
    def sequences(self) -> int:
        return round(self.ids / (1 - self.padding_fraction) / self.seq_length)

    def steps(self, global_batch: int) -> int:
        """Optimizer steps of one pass, ``global_batch`` sequences each."""
        return self.sequences // global_batch


def forecast(mixture: Mixture, sample_size: int = SAMPLE_SIZE) -> Forecast:
    """Documents, ids, epochs and padding of a build.

    Args:
        mixture: the mixture.
        sample_size: documents of each source that are looked at.

    Raises:
        MixtureError: if a source cannot be read or belongs to another codebook.
    """
    check_codebooks(mixture)
    config = mixture.config
    chunks = [list_chunks(mixture, source) for source in range(len(config.sources))]
    estimates = estimate_sources(mixture, chunks, sample_size)
    epochs = epochs_needed(config, estimates)
    ids = [passes * estimate.num_ids for passes, estimate in zip(epochs, estimates, strict=True)]
    total = max(sum(ids), 1.0)
    sources = tuple(
        SourceForecast(
            source.name,
            estimate.num_documents,
            estimate.kept_fraction,
            estimate.ids_per_document,
            estimate.num_images / max(len(estimate.lengths), 1),
            passes,
            amount,
            amount / total,
            estimate.refused,
            estimate.absent_fields,
            estimate.num_sampled,
        )
        for source, estimate, passes, amount in zip(config.sources, estimates, epochs, ids, strict=True)
    )
    padding, split = simulate_window(config, estimates, ids)
    return Forecast(sources, config.seq_length, padding, split)


def simulate_window(
    config: MixtureConfig, estimates: list[SourceEstimate], ids: list[float]
) -> tuple[float, float]:
    """Padding of one window of sampled lengths, and the fraction of documents that are split."""
    rng = np.random.default_rng(config.seed)
    usable = [index for index, estimate in enumerate(estimates) if estimate.lengths and ids[index] > 0]
    documents = np.array([ids[index] / estimates[index].ids_per_document for index in usable])
    if not usable:
        return 0.0, 0.0
    num_documents = min(config.packing.window_documents, max(1, int(documents.sum())))
    lengths = np.concatenate(
        [  # in turns, so that whole epochs of a small source are what they are
            np.resize(
                rng.permutation(estimates[index].lengths),
                max(1, round(num_documents * count / documents.sum())),
            )
            for index, count in zip(usable, documents, strict=True)
        ]
    )
    whole, rest = lengths // config.seq_length, lengths % config.seq_length
    pieces = np.concatenate([np.full(int(whole.sum()), config.seq_length), rest[rest > 0]])
    num_rows = count_rows(assign_rows(pieces.astype(np.int32), config.seq_length))
    padding = 1 - float(pieces.sum()) / (num_rows * config.seq_length)
    return padding, float(np.mean(lengths > config.seq_length))
