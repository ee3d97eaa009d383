"""The model as this rank holds it: whole, sharded, or a few pipeline stages; one way to run a step of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.vocabulary import VocabularyLayout
from trainer.dropout import row_keys
from trainer.export import first_weights
from trainer.llama import Llama
from trainer.lora import add_adapters
from trainer.packed_data import BatchShape, PackedBatch
from trainer.parallelize import Meshes, check_divides, parallelize, set_gradient_sync
from trainer.pipeline_stages import PipelineRunner, build_stage_models, check_schedule
from trainer.run_config import TrainConfig
from trainer.weights import fill_parameters


class ModelParts:
    """Parts of the model on this rank and how a step runs through them."""

    def __init__(
        self,
        config: TrainConfig,
        layout: VocabularyLayout,
        seq_length: int,
        meshes: Meshes,
        device: torch.device,
    ) -> None:
        """Build, wrap and fill the parts; collective."""
        self.config = config.model.shape(layout)
        self._has_dropout = config.lora.rank > 0 and config.lora.dropout > 0
        self.device = device
        self.meshes = meshes
        check_divides(self.config, config.parallel, seq_length)
        check_schedule(config.parallel)
        # Memory comes after sharding, except for tied tables: moving off the meta device would untie them.
        with torch.device(device if self.config.is_tied else "meta"):
            models = self._build(config)
        start = config.model
        source = first_weights(start.init_from, start.adapter, config.seed, self.config, layout, config.lora)
        for model in models.values():
            parallelize(model, meshes)
            if not self.config.is_tied:
                model.to_empty(device=device)
            fill_parameters(model, source)
        self.parts: Sequence[Llama] = list(models.values())
        self.shape = self._batch_shape(config)
        self._runner: PipelineRunner | None = None
        if meshes.pipeline is not None:
            micro_shape = (config.data.micro_batch, seq_length)
            num_micro = self.shape.rank_sequences // config.data.micro_batch
            self._runner = PipelineRunner(models, meshes, micro_shape, num_micro, device)

    def _build(self, config: TrainConfig) -> dict[int, Llama]:
        """Parts by pipeline stage, adapters included, not wrapped yet."""
        if self.meshes.pipeline is None:
            models = {0: Llama(self.config)}
        else:
            models = build_stage_models(self.config, config.parallel, self.meshes.pipeline.get_local_rank())
        if config.lora.rank:
            for model in models.values():
                add_adapters(model, config.lora)
        return models

    def _batch_shape(self, config: TrainConfig) -> BatchShape:
        """A pipeline takes its whole share at once and divides it itself."""
        data, ranks = config.data, self.meshes.data_ranks
        shape = BatchShape(data.global_batch, data.micro_batch, self.meshes.data_rank, ranks)
        if self.meshes.pipeline is None:
            return shape
        return BatchShape(data.global_batch, shape.rank_sequences, self.meshes.data_rank, ranks)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for part in self.parts for parameter in part.parameters()]

    @property
    def has_losses(self) -> bool:
        """Whether losses appear on this rank (the last pipeline stage, or no pipeline)."""
        return self._runner is None or self._runner.has_last

    def forward_backward(
        self, batches: Sequence[PackedBatch], normaliser: Tensor, dropout_seed: int
    ) -> list[Tensor]:
        """Gradients of the sum of all losses over ``normaliser``; (B, T) losses of each batch seen here."""
        if self._runner is not None:
            steps = [
                self._runner.step(batch, normaliser, self._dropout_keys(batch, dropout_seed))
                for batch in batches
            ]
            return [losses for losses in steps if losses is not None]
        results = []
        for index, batch in enumerate(batches):
            set_gradient_sync(self.parts[0], self.meshes.config, is_last=index == len(batches) - 1)
            losses_BT = self._forward(batch, self._dropout_keys(batch, dropout_seed))
            (losses_BT.sum() / normaliser).backward()
            results.append(losses_BT.detach())
        return results

    @torch.no_grad()
    def evaluate(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """(B, T) losses of each batch seen here, without dropout."""
        for part in self.parts:
            part.eval()
        if self._runner is not None:
            losses = [self._runner.evaluate(batch) for batch in batches]
        else:
            losses = [self._forward(batch, None) for batch in batches]
        for part in self.parts:
            part.train()
        return [loss for loss in losses if loss is not None]

    def _forward(self, batch: PackedBatch, dropout_keys_B: Tensor | None) -> Tensor:
        losses_BT = self.parts[0](
            batch.ids_BT,
            batch.positions_BT,
            batch.cu_seqlens_BN,
            batch.labels_BT,
            dropout_keys_B=dropout_keys_B,
        )
        assert isinstance(losses_BT, Tensor)
        return losses_BT

    def _dropout_keys(self, batch: PackedBatch, seed: int) -> Tensor | None:
        """(B,) int64 where the model has dropout."""
        return row_keys(seed, batch.row_indices).to(self.device) if self._has_dropout else None
