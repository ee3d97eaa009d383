"""How much of each source to render: whole epochs, and a range of the last one.

What a source gives is known only after rendering, so weighted sources go by an estimate; one that then turns
out too short gets a further range.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.packing.epoch_range import WHOLE_EPOCH, EpochRange
from pipeline.packing.source_estimate import SourceEstimate
from schemas.mixture import MixtureConfig, MixtureError

RENDERED_PER_ESTIMATED = 1.05
"""How much is rendered of a weighted source, over what the estimate says is needed."""
NEXT_RANGE = WHOLE_EPOCH // 16
"""What is rendered in addition where that was too little, as long as it is."""


MAX_EPOCHS = 1 << 16
"""Origins number epochs in uint16."""


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


def first_ranges(config: MixtureConfig, estimates: Sequence[SourceEstimate], source: int) -> list[EpochRange]:
    """What certainly, or by the estimate, is needed of a source.

    Raises:
        MixtureError: if these are more epochs than can be told apart.
    """
    passes = epochs_needed(config, estimates)[source]
    estimate = estimates[source]
    if config.is_weighted and estimate.num_ids:
        passes *= RENDERED_PER_ESTIMATED
    if passes > MAX_EPOCHS:
        raise MixtureError(
            f"source {config.sources[source].name}: its {estimates[source].num_documents:,} documents would"
            f" be taken {passes:,.0f} times, at most {MAX_EPOCHS:,} are possible; lower its"
            f" {'weight' if config.is_weighted else 'epochs'}"
        )
    whole, rest = int(passes), round((passes - int(passes)) * WHOLE_EPOCH)
    ranges = [EpochRange(epoch, 0, WHOLE_EPOCH, estimate.num_buckets) for epoch in range(whole)]
    if rest or not ranges:
        ranges.append(_make_range(whole, 0, max(rest, 1), estimate))
    return ranges


def next_range(last: EpochRange, estimate: SourceEstimate) -> EpochRange:
    """What follows in the shuffled order of a source that ran dry."""
    if last.stop == WHOLE_EPOCH:
        return _make_range(last.epoch + 1, 0, NEXT_RANGE, estimate)
    return _make_range(last.epoch, last.stop, min(last.stop + NEXT_RANGE, WHOLE_EPOCH), estimate)


def _make_range(epoch: int, start: int, stop: int, estimate: SourceEstimate) -> EpochRange:
    """A range whose buckets are as large as those of a whole epoch."""
    num_buckets = max(1, round(estimate.num_buckets * (stop - start) / WHOLE_EPOCH))
    return EpochRange(epoch, start, stop, num_buckets)
