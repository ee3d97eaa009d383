"""A step whose loss or gradient is not finite: which rows and sources it came from."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from schemas.packed_folder import PackedFolder
from trainer.packed_data import StepData, describe_rows


class NonFiniteError(RuntimeError):
    """Loss or gradient is not finite; the step was not taken. Names step, sources and packed rows."""


def describe_non_finite(
    step: int, losses: Sequence[Tensor], data: StepData, grad_norm: float, folder: PackedFolder
) -> str:
    """Rows and sources of the losses that are not finite, on all ranks: every rank calls this.

    Args:
        step: 1-based.
        losses: (B, T) of each micro-batch; empty on ranks that compute none.
        data: of this rank.
        grad_norm: where all losses are finite, what is not.
        folder: that the rows come from.
    """
    bad: list[int] = []
    sources: set[str] = set()
    for losses_BT, batch in zip(losses, data.micro_batches if losses else [], strict=True):
        is_bad = ~losses_BT.isfinite()
        bad += [batch.row_indices[row] for row in is_bad.any(dim=1).nonzero()[:, 0].tolist()]
        sources |= {folder.source_names[index] for index in batch.sources_BT[is_bad].unique().tolist()}
    every = [row for batch in data.micro_batches for row in batch.row_indices]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (bad, sources, every))
    rows = sorted({row for part in gathered for row in part[0]})
    names = sorted(set[str]().union(*(part[1] for part in gathered)))
    if rows:
        what = f"loss is not finite in sources {names}, rows"
    else:
        rows = sorted({row for part in gathered for row in part[2]})
        what = f"gradient norm is {grad_norm} though every loss is finite; rows of this step"
    return f"step {step} was not taken: {what}\n{describe_rows(folder, rows)}"
