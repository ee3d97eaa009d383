"""The optimisation loop of the two tokenizer stages: AdamW, warm-up and cosine, resume, one line of metrics
per N steps.

The network decides the loss (its ``forward`` gives ``StepResult``), the caller the batches (a function of the
step), and this file only steps. Checkpoints and metrics are the trainer's; with more than one process
gradients are averaged by DDP. A process group must exist (``processes.process_group``), also for one process.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import CheckpointConfig, CheckpointStore, Progress, TrainingState, seed_step
from trainer.metrics import MetricsConfig, MetricsWriter
from trainer.same_stage import check_same_stage, describe_stage
from trainer.stage_config import StageRunConfig
from trainer.stop_signal import StopSignal

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class StepResult:
    """What one forward pass of a stage gives."""

    loss: Tensor
    metrics: Mapping[str, Tensor | float]


def parameter_groups(module: nn.Module, run: StageRunConfig) -> list[dict[str, Any]]:
    """AdamW groups: tensors that decay, and those that do not.

    The release's rule goes by name and number of dimensions; without ``decay_tables`` only weights of layers
    decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = any(
            part in name for part in ("queries", "pos_embed", "cls_token", "embeddings", "codebook")
        )
        is_weight = parameter.ndim >= 2 and (run.decay_tables or not is_table)
        (decayed if is_weight else plain).append(parameter)
    return [{"params": decayed, "weight_decay": run.weight_decay}, {"params": plain, "weight_decay": 0.0}]


class StageLoop:
    """One training run in one directory."""

    def __init__(
        self,
        module: nn.Module,
        run: StageRunConfig,
        output: Path,
        steps_per_epoch: int,
        settings: Mapping[str, Any] | None = None,
        data_figures: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Open the directory.

        Args:
            module: gives ``StepResult``.
            run: length and rates.
            output: gets ``checkpoints`` and ``metrics.jsonl``.
            steps_per_epoch: of the data.
            settings: further ones that decide the curve, by name; they may not change on resume.
            data_figures: of this rank's batches so far, logged beside the losses.
        """
        self.module = module
        self.run = run
        self.output = output
        self.steps_per_epoch = steps_per_epoch
        self.data_figures = data_figures
        self.step = 0
        self.optimizer = torch.optim.AdamW(parameter_groups(module, run), lr=run.lr, betas=(0.9, 0.999))
        self._state = TrainingState([module], [[self.optimizer]], skips_frozen=True)
        checkpoints = CheckpointConfig(
            every_steps=run.checkpoint_every, keep=CHECKPOINTS_KEPT, is_async=False
        )
        self._description = describe_stage(run, steps_per_epoch, settings or {})
        kind = {"kind": type(module).__name__}
        self._store = CheckpointStore(output / "checkpoints", checkpoints, kind | self._description)
        self._metrics: MetricsWriter | None = None

    def resume(self) -> int:
        """Load the newest checkpoint of this directory, if there is one; the step to go on with.

        Raises:
            ValueError: a setting that decides the curve is another than then.
        """
        newest = self._store.newest()
        if newest is not None:
            check_same_stage(newest, self._description)
            self.step = self._store.load(newest, self._state).step
            logger.info("resumed step=%d from=%s", self.step, newest)
        return self.step

    def train(
        self,
        make_inputs: Callable[[int], tuple[Any, ...]],
        after_step: Callable[[int], None] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Run to the last step, or until SIGTERM or SIGINT come to any rank; the last state is saved.

        Args:
            make_inputs: arguments of the module's forward for a step; a pure function of it.
            after_step: called after each optimiser step.
            evaluate: figures on held-out data, logged every ``evaluate_every`` steps and at the end; every
                rank calls it, the first logs what it gives.

        Raises:
            FloatingPointError: loss or gradient is not finite on any rank; that step was neither taken nor
                saved, and every rank ends.
            InterruptedError: a signal came; on every rank, after the same step.
        """
        forward = self.module
        if dist.get_world_size() > 1:
            forward = DistributedDataParallel(self.module, forward_sync_buffers=False)
        if dist.get_rank() == 0:
            self._metrics = MetricsWriter(self.output, self.step, MetricsConfig())
        with StopSignal() as stop:
            self._loop(forward, make_inputs, after_step, evaluate, stop)
        self._store.finish()
        if self._metrics is not None:
            self._metrics.close()
        self.module.eval()
        if self.step < self.run.steps:
            raise InterruptedError(
                f"stopped after {self.step:,} of {self.run.steps:,} steps; the same command goes on there"
            )

    def _loop(
        self,
        forward: nn.Module,
        make_inputs: Callable[[int], tuple[Any, ...]],
        after_step: Callable[[int], None] | None,
        evaluate: Callable[[], Mapping[str, float]] | None,
        stop: StopSignal,
    ) -> None:
        self.module.train()
        gpus = {parameter.device for parameter in self.module.parameters() if parameter.is_cuda}
        clock, num_images = time.perf_counter(), 0
        while self.step < self.run.steps:
            with torch.random.fork_rng(gpus):  # dropout of a step is the same after a resume
                seed_step(self.run.seed, self.step, dist.get_rank())
                inputs = make_inputs(self.step)
                result, lr, grad_norm, is_stopped = self._step(forward, inputs, stop)
            num_images += len(inputs[0]) * dist.get_world_size()
            self.step += 1
            if after_step is not None:
                after_step(self.step - 1)
            if self.step % self.run.log_every == 0:
                elapsed = time.perf_counter() - clock
                figures: dict[str, Tensor | float] = {
                    "loss": result.loss,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "images_s": num_images / elapsed,
                }
                self.log(figures | dict(result.metrics))
                clock, num_images = time.perf_counter(), 0
            if evaluate is not None and not is_stopped and self._is_due(self.run.evaluate_every):
                self.module.eval()
                self.log(evaluate())
                self.module.train()
            if is_stopped or self._is_due(self.run.checkpoint_every):
                self._store.save(self._state, Progress(step=self.step, seed=self.run.seed))
            if is_stopped:
                return

    def forget(self, parameter: Tensor, rows: Tensor) -> None:
        """Clear the optimiser's moments of some rows, whose values were replaced."""
        for moment in self.optimizer.state.get(parameter, {}).values():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moment[rows.to(moment.device)] = 0

    def _is_due(self, every: int) -> bool:
        return self.step == self.run.steps or (every > 0 and self.step % every == 0)

    def _step(
        self, forward: nn.Module, inputs: tuple[Any, ...], stop: StopSignal
    ) -> tuple[StepResult, float, float, bool]:
        """One step; its result over all ranks, rate and gradient norm, and whether any rank was asked to
        stop."""
        lr = self.run.lr_at(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.run.autocast(inputs[0].device):
            result: StepResult = forward(*inputs)
        self.optimizer.zero_grad()
        result.loss.backward()  # also of a bad loss: other ranks wait for its gradients
        norm = self.run.max_grad_norm or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.module.parameters(), norm)
        of_all_ranks, is_stopped = self._agree(result, grad_norm, stop)
        self.optimizer.step()
        return of_all_ranks, lr, float(grad_norm), is_stopped

    def _agree(self, result: StepResult, grad_norm: Tensor, stop: StopSignal) -> tuple[StepResult, bool]:
        """Means over the ranks, as gradients are averaged, and whether any rank was asked to stop; an error
        on all where loss or gradient of any is not finite."""
        loss = result.loss.detach().float()
        is_bad = ~(loss.isfinite() & grad_norm.isfinite())
        metrics = dict(result.metrics) | dict(self.data_figures())
        own = (is_bad, stop.is_set, loss, *metrics.values())
        sums = torch.stack([torch.as_tensor(value).detach().to(loss) for value in own])
        dist.all_reduce(sums)
        if sums[0] > 0:
            where = "" if is_bad else "on another rank; here "
            raise FloatingPointError(
                f"step {self.step}: {where}loss is {float(loss)}, norm of the gradient {float(grad_norm)}; "
                "this step was neither taken nor saved"
            )
        mean_loss, *means = (sums[2:] / dist.get_world_size()).unbind()
        return StepResult(mean_loss, dict(zip(metrics, means, strict=True))), bool(sums[1] > 0)

    def log(self, figures: Mapping[str, Tensor | float]) -> None:
        """One line to the log and to ``metrics.jsonl``, with the number of finished steps; rank 0 only."""
        if self._metrics is not None:
            values = {
                name: float(value.detach() if isinstance(value, Tensor) else value)
                for name, value in figures.items()
            }
            self._metrics.write({"step": self.step} | values)
