"""The training loop: packed shards in, checkpoints, metrics and a Hugging Face folder out.

Loss of a step = sum over the learned ids of the global batch / their number; so it depends neither on how
sequences are packed nor on micro-batches and ranks.
"""

import json
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.atomic_write import write_atomically
from schemas.packed_folder import PackedFolder
from trainer.checkpoint import CheckpointStore, Progress, TrainingState
from trainer.export import check_same_run, describe_model, export_checkpoint
from trainer.huggingface import MixtureMarks
from trainer.huggingface_tokenizer import grown_tokenizer
from trainer.load_model import check_codebook
from trainer.metrics import LossTable, MetricsWriter, SpeedMeter, log_line
from trainer.model_parts import ModelParts
from trainer.non_finite import NonFiniteError, describe_non_finite
from trainer.optimizer import build_optimizers, clip_gradients, rate_fraction, set_learning_rate
from trainer.packed_data import PackedBatch, PackedLoader, StepData, read_validation
from trainer.parallelize import Meshes
from trainer.processes import choose_device, process_group
from trainer.run_config import TrainConfig
from trainer.run_folder import changed_settings, check_run_folder
from trainer.run_lock import run_lock
from trainer.stop_signal import StopSignal

logger = logging.getLogger(__name__)
_EXPORT_TIMEOUT = timedelta(hours=12)
"""How long other ranks wait while the first writes the export; the usual minutes are too few for 14B."""

_USUAL_PASSES = 4
"""Passes over the data up to which repeating it is nearly as good as more of it (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    is_finished: bool
    """False after SIGTERM or SIGINT: a checkpoint was saved and the same command goes on from it."""
    first_step: int = 0
    """Of the checkpoint that it went on from."""


def train(config: TrainConfig) -> TrainResult:
    """Run, or go on with, a training run. Every process of the run calls this.

    Raises:
        NonFiniteError: when loss or gradient overflow.
        ValueError, FileNotFoundError: when settings or files do not fit; named in the message.
    """
    device = choose_device(config.device)
    with process_group(device), StopSignal() as stop:
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        check_run_folder(Path(config.output))
        with run_lock(Path(config.output)):
            return Trainer(config, device, stop).run()


class Trainer:
    """One rank of a run."""

    def __init__(self, config: TrainConfig, device: torch.device, stop: StopSignal) -> None:
        """Build the model, open the data, and load the newest complete checkpoint if there is one."""
        self.config = config
        self.device = device
        self._stop = stop
        self._output = Path(config.output)
        self._folder = PackedFolder(config.data.packed)
        self._layout = self._folder.vocabulary
        for start in filter(None, (config.model.init_from, config.model.adapter)):
            what = f"data.packed {self._folder.folder}"
            check_codebook(Path(start), self._folder.footer.codebook, what)
        self._tokenizer: Any = None
        if config.exports_model and config.text_tokenizer:  # now, not after days of training
            self._tokenizer = grown_tokenizer(
                Path(config.text_tokenizer), self._layout, self._folder.footer.tokenizer
            )
        self._validation = self._open_validation()
        self._meshes = Meshes.build(config.parallel, device.type)
        self._store, newest = self._open_store()
        self._parts = ModelParts(config, self._layout, self._folder.seq_length, self._meshes, device)
        self._optimizers = build_optimizers(self._parts.parts, config.optimizer)
        self._state = TrainingState(self._parts.parts, self._optimizers, skips_frozen=config.lora.rank > 0)
        self.progress = self._fresh_progress()
        if newest is not None:
            logger.info("resume=%s", newest)
            self.progress = self._store.load(newest, self._state)
        num_frozen = self._parts.config.num_projection_parameters if config.lora.rank else 0
        self._speed = SpeedMeter(self._parts.config, num_frozen, self._meshes.data_ranks, device)

    def _open_validation(self) -> PackedFolder | None:
        if not self.config.data.validation:
            return None
        folder = PackedFolder(self.config.data.validation)
        for name in ("seq_length", "vocabulary"):
            if getattr(folder, name) != getattr(self._folder, name):
                raise ValueError(
                    f"data.validation {folder.folder}: {name} is {getattr(folder, name)}, in data.packed "
                    f"{getattr(self._folder, name)}; build both with the same text tokenizer and seq_length"
                )
        if len(found := {"", folder.footer.codebook, self._folder.footer.codebook}) > 2:
            raise ValueError(
                f"data.validation {folder.folder}: its image codes are of another codebook than those of "
                f"data.packed ({' and '.join(sorted(found - {''}))}); tokenize both with the same tokenizer"
            )
        return folder

    def _fresh_progress(self) -> Progress:
        return Progress(
            seed=self.config.seed, num_rows=len(self._folder), mixture=self._folder.footer.mixture
        )

    def _open_store(self) -> tuple[CheckpointStore, Path | None]:
        """Checkpoints of the run and the newest, which is checked before a large model is built."""
        footer = self._folder.footer
        description = describe_model(
            self.config.model.shape(self._layout),
            self._layout,
            self.config.lora,
            self.config.model.init_from,
            MixtureMarks(footer.tokenizer.bos_id, footer.tokenizer.eos_id, footer.codebook, footer.num_codes),
            self.config.optimizer.kind,
        )
        store = CheckpointStore(self._output / "checkpoints", self.config.checkpoint, description)
        newest = store.newest()
        if newest is not None:
            check_same_run(newest, {"progress": asdict(self._fresh_progress()), **description})
        return store, newest

    def run(self) -> TrainResult:
        """Train until the last step or a signal; save, and export when finished."""
        writer = None
        if dist.get_rank() == 0:
            self._write_config()  # first: it says whose folder this is
            writer = MetricsWriter(self._output, self.progress.step, self.config.metrics)
        loader = PackedLoader(
            self._folder,
            self.config.seed,
            self._parts.shape,
            self.progress.consumed_sequences,
            self.device,
            self.config.data.read_workers,
        )
        first_step = self.progress.step
        if writer is not None:
            self._log_passes()
        try:
            is_stopped = self._loop(loader, writer)
        except Exception as error:
            self._store.rescue(waits_for_all=isinstance(error, NonFiniteError))
            raise
        finally:
            loader.close()
            if writer is not None:
                writer.close()
        self._store.save(self._state, self.progress, is_final=True)
        is_finished = self.progress.step >= self.config.num_steps
        if is_finished and self.config.exports_model:
            self._export()
        assert is_finished or is_stopped
        return TrainResult(self.progress.step, is_finished, first_step)

    def _write_config(self) -> None:
        """Write the settings as resolved, and log those that change; not of a start that takes no step."""
        path, done = self._output / "config.json", self.progress.step
        if path.exists() and done >= self.config.num_steps:
            return
        settings = asdict(self.config)
        for change in changed_settings(self._output, settings) if done else ():
            logger.info("%s from step %d on", change, done + 1)
        write_atomically(path, json.dumps(settings, indent=1).encode() + b"\n")

    def _log_passes(self) -> None:
        """Say how often the run goes over its data, where that is so often that it learns them by heart."""
        passes = self.config.num_steps * self.config.data.global_batch / len(self._folder)
        if passes > _USUAL_PASSES:
            logger.info("steps=%d sequences=%d passes=%.1f", self.config.num_steps, len(self._folder), passes)

    def _export(self) -> None:
        newest = self._store.newest()
        assert newest is not None
        group = dist.new_group(backend="gloo", timeout=_EXPORT_TIMEOUT)
        if dist.get_rank() == 0:
            export_checkpoint(newest, self._output / "model", tokenizer=self._tokenizer)
        dist.barrier(group=group)

    def _loop(self, loader: PackedLoader, writer: MetricsWriter | None) -> bool:
        """Steps until the end; True when a signal ended them earlier."""
        steps, first_step = iter(loader), self.progress.step + 1
        while self.progress.step < self.config.num_steps:
            data = next(steps)
            with self._profiler():
                record, is_stopped = self._step(data)
            step = self.progress.step
            is_last = is_stopped or step == self.config.num_steps
            if writer is not None and (is_last or step == 1 or step % self.config.metrics.every_steps == 0):
                writer.write(record | self._speed.flush())
            elif writer is not None and step == first_step:  # a slow machine shows early that it works
                logger.info(log_line(record))
            if self._validation is not None and step % self.config.data.validation_every == 0:
                values = self._validate(self._validation)
                if writer is not None:
                    writer.write({"step": step} | values)
            self._store.poll()
            if is_stopped:
                return True
            every_steps = self.config.checkpoint.every_steps
            if every_steps and step % every_steps == 0:
                self._store.save(self._state, self.progress)
        return False

    def _step(self, data: StepData) -> tuple[dict[str, float], bool]:
        """One optimizer step; its record, and whether any rank was asked to stop."""
        step = self.progress.step
        fraction = rate_fraction(step, self.config.optimizer, self.config.num_steps)
        flat = [optimizer for part in self._optimizers for optimizer in part]
        set_learning_rate(flat, fraction)
        dropout_seed = self.config.seed * 1_000_003 + step
        losses = self._parts.forward_backward(data.micro_batches, self._count_learned(data), dropout_seed)
        table, is_stopped = self._reduce(losses, data.micro_batches, self._folder)
        max_norm = self.config.optimizer.max_grad_norm
        grad_norm = float(clip_gradients(self._parts.parameters, max_norm, self._meshes.pipeline))
        means = table.means()
        if not (math.isfinite(means.get("loss", 0.0)) and math.isfinite(grad_norm)):
            raise NonFiniteError(describe_non_finite(step + 1, losses, data, grad_norm, self._folder))
        for optimizer in flat:
            optimizer.step()
            optimizer.zero_grad()
        self._advance(data, table)
        record = {"step": step + 1, **means, "grad_norm": grad_norm}
        record["learning_rate"] = self.config.optimizer.learning_rate * fraction
        return record, is_stopped

    def _advance(self, data: StepData, table: LossTable) -> None:
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            consumed_sequences=data.consumed_sequences,
            learned_ids=self.progress.learned_ids + table.num_learned,
        )
        self._speed.add(data)

    def _count_learned(self, data: StepData) -> Tensor:
        """Learned ids of the global batch, at least 1: a scalar on the device."""
        count = sum((batch.labels_BT >= 0).sum() for batch in data.micro_batches)
        assert isinstance(count, Tensor)
        dist.all_reduce(count)
        return (count // self._meshes.copies_of_data).clamp(min=1)

    def _reduce(
        self, losses: list[Tensor], batches: list[PackedBatch], folder: PackedFolder
    ) -> tuple[LossTable, bool]:
        """Losses by source and modality over all ranks, and whether any of them got a signal."""
        table = LossTable(folder.source_names, self._layout, self.device)
        if self._parts.has_losses:
            for losses_BT, batch in zip(losses, batches, strict=True):
                table.add(losses_BT, batch.labels_BT, batch.sources_BT)
        flag = table.values.new_full((1,), float(self._stop.is_set))
        everything = torch.cat((table.values.flatten(), flag))
        dist.all_reduce(everything)
        table.values = everything[:-1].view_as(table.values) / self.config.parallel.tensor
        return table, bool(everything[-1] > 0)

    def _validate(self, folder: PackedFolder) -> dict[str, float]:
        """Mean losses on the held-out set."""
        means = self._validation_losses(folder).means()
        return {f"validation/{name}": value for name, value in means.items()}

    def _validation_losses(self, folder: PackedFolder) -> LossTable:
        """Losses on ``validation_sequences`` rows of a set, or on all it has; each row once."""
        total = LossTable(folder.source_names, self._layout, self.device)
        shape = self._parts.shape
        num_rows = min(self.config.data.validation_sequences, len(folder))
        for consumed in range(0, num_rows, shape.global_sequences):
            data = read_validation(folder, shape, consumed, num_rows)
            batches = [batch.to(self.device) for batch in data.micro_batches]
            table, _ = self._reduce(self._parts.evaluate(batches), batches, folder)
            total.values += table.values
        return total

    def _profiler(self) -> AbstractContextManager[Any]:
        """Traces the step asked for into ``trace-STEP.json`` (Perfetto, chrome://tracing); else nothing."""
        step = self.progress.step + 1
        if step != self.config.metrics.profile_step or dist.get_rank() != 0:
            return nullcontext()
        path = str(self._output / f"trace-{step}.json")
        return torch.profiler.profile(on_trace_ready=lambda profile: profile.export_chrome_trace(path))
