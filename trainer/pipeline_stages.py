"""Pipeline parallelism: the layers divided into stages, and PyTorch's schedules run over micro-batches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    ScheduleZBVZeroBubble,
    get_schedule_class,
)

from trainer.llama import Llama, LlamaConfig
from trainer.packed_data import PackedBatch
from trainer.parallelize import PRECISIONS, Meshes, ParallelConfig


def split_layers(num_layers: int, num_stages: int) -> list[range]:
    """Contiguous layers of each stage, as even as they go, the longer stages in the middle.

    The first stage has the embedding and the last the head, so these two are the ones to be shorter.
    """
    if num_layers < num_stages:
        raise ValueError(f"{num_layers} layers cannot make {num_stages} pipeline stages")
    shortest, longer = divmod(num_layers, num_stages)
    first = (num_stages - longer) // 2
    sizes = [shortest + (first <= stage < first + longer) for stage in range(num_stages)]
    starts = [sum(sizes[:stage]) for stage in range(num_stages)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def stages_of_rank(config: ParallelConfig, rank: int) -> list[int]:
    """Stages that a pipeline rank holds: in turns, or, for the V schedule, one from each end."""
    num_stages = config.pipeline * config.stages_per_rank
    if get_schedule_class(config.schedule) is ScheduleZBVZeroBubble:
        return [rank, num_stages - 1 - rank]
    return list(range(rank, num_stages, config.pipeline))


def check_schedule(config: ParallelConfig) -> None:
    """Raise ValueError unless the schedule exists and fits the number of stages of a rank."""
    try:
        schedule = get_schedule_class(config.schedule)
    except ValueError as error:
        raise ValueError(f"parallel.schedule {config.schedule!r} is unknown; try 1F1B") from error
    is_single = issubclass(schedule, PipelineScheduleSingle)
    if is_single != (config.stages_per_rank == 1):
        wanted = "1" if is_single else "2 or more"
        raise ValueError(
            f"parallel.schedule {config.schedule} takes {wanted} stages a rank, "
            f"parallel.stages_per_rank is {config.stages_per_rank}"
        )


def build_stage_models(config: LlamaConfig, parallel: ParallelConfig, rank: int) -> dict[int, Llama]:
    """The model parts that one pipeline rank holds, by stage."""
    num_stages = parallel.pipeline * parallel.stages_per_rank
    layers = split_layers(config.num_layers, num_stages)
    return {
        stage: Llama(config, layers[stage], has_embedding=stage == 0, has_head=stage == num_stages - 1)
        for stage in stages_of_rank(parallel, rank)
    }


class PipelineRunner:
    """Runs one rank's whole share of a global batch through the stages."""

    def __init__(
        self,
        models: dict[int, Llama],
        meshes: Meshes,
        micro_shape: tuple[int, int],
        num_micro_batches: int,
        device: torch.device,
    ) -> None:
        """Make stages with static shapes and their schedule.

        Args:
            models: parts of this rank by stage, wrapped and on their device.
            meshes: of the run.
            micro_shape: (sequences, ids) of a micro-batch.
            num_micro_batches: of one optimizer step on this rank.
            device: of the parts.
        """
        parallel = meshes.config
        self._num_stages = parallel.pipeline * parallel.stages_per_rank
        self._normaliser = torch.ones(())
        group = meshes.world["pipeline"].get_group()
        stages = []
        for index, model in models.items():
            inputs, outputs = self._shapes(index, model.config, parallel, micro_shape, device)
            stage = PipelineStage(
                model, index, self._num_stages, device, input_args=inputs, output_args=outputs, group=group
            )
            stages.append(stage)
        schedule = get_schedule_class(parallel.schedule)
        is_multi = issubclass(schedule, PipelineScheduleMulti)
        self._schedule = schedule(
            stages if is_multi else stages[0], num_micro_batches, loss_fn=self._loss, scale_grads=False
        )
        self.has_first = 0 in models
        self.has_last = self._num_stages - 1 in models

    def _shapes(
        self,
        stage: int,
        config: LlamaConfig,
        parallel: ParallelConfig,
        micro_shape: tuple[int, int],
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Examples, without data, of what a stage takes and gives: ids or hidden states, hidden or losses."""
        rows, length = micro_shape
        hidden_shape = (rows, length // parallel.tensor, config.width)
        precision = PRECISIONS[parallel.precision]
        hidden = torch.empty(hidden_shape, dtype=precision, device="meta", requires_grad=True)
        inputs = torch.empty(micro_shape, dtype=torch.int64, device="meta") if stage == 0 else hidden
        is_last = stage == self._num_stages - 1
        losses = torch.empty(micro_shape, dtype=torch.float32, device="meta", requires_grad=True)
        return inputs, losses if is_last else hidden

    def _loss(self, losses_BT: Tensor, _labels_BT: Tensor) -> Tensor:
        return losses_BT.sum() / self._normaliser

    def step(self, batch: PackedBatch, normaliser: Tensor, dropout_keys_B: Tensor | None) -> Tensor | None:
        """Forward and backward of all micro-batches; (B, T) detached losses where the last stage is."""
        self._normaliser = normaliser
        context = self._context(batch)
        if dropout_keys_B is not None:
            context["dropout_keys_B"] = dropout_keys_B
        outputs = self._schedule.step(*self._inputs(batch), target=self._target(batch), **context)
        return outputs.detach() if outputs is not None else None

    @torch.no_grad()
    def evaluate(self, batch: PackedBatch) -> Tensor | None:
        """Losses of all micro-batches without a backward pass."""
        losses: Tensor | None = self._schedule.eval(
            *self._inputs(batch), target=self._target(batch), **self._context(batch)
        )
        return losses

    def _inputs(self, batch: PackedBatch) -> Sequence[Tensor]:
        return (batch.ids_BT,) if self.has_first else ()

    def _target(self, batch: PackedBatch) -> Tensor | None:
        return batch.labels_BT if self.has_last else None

    @staticmethod
    def _context(batch: PackedBatch) -> dict[str, Tensor]:
        return {
            "positions_BT": batch.positions_BT,
            "cu_seqlens_BN": batch.cu_seqlens_BN,
            "labels_BT": batch.labels_BT,
        }
