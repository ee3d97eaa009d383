"""AdamW or Muon with weight-decay groups, the learning-rate curve, and clipping over every mesh."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from trainer.weights import clean_name


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The defaults are the released pretraining settings of the paper."""

    kind: str = "adamw"
    """``adamw``, or ``muon`` for the layers' matrices (tables and norms stay with AdamW)."""
    learning_rate: float = 1.5e-4
    """Peak."""
    final_fraction: float = 0.05
    """Floor of the cosine over the peak."""
    warmup_steps: int = 900
    """Steps of linear warm-up; the cosine follows."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-5
    weight_decay: float = 0.05
    """On matrices; norms have none."""
    max_grad_norm: float = 1.0
    """Gradients of a larger total norm are scaled down to it; 0: no clipping."""
    muon_learning_rate: float = 2e-3
    """Peak for Muon's matrices, scaled to match the update size of AdamW."""

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"optimizer.kind must be 'adamw' or 'muon', got {self.kind!r}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be at least 0, got {self.warmup_steps}")
        # Written so that NaN is refused as well.
        for name in ("muon_learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name} must be positive, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay must be at least 0, got {self.weight_decay}")
        if not self.max_grad_norm >= 0:
            raise ValueError(
                f"optimizer.max_grad_norm must be at least 0 (0: no clipping), got {self.max_grad_norm}"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.final_fraction <= 1:
            raise ValueError(
                "optimizer.learning_rate must be positive and final_fraction between 0 and 1, "
                f"got {self.learning_rate} and {self.final_fraction}"
            )


def rate_fraction(step: int, config: OptimizerConfig, num_steps: int) -> float:
    """Learning rate of a step over its peak: linear warm-up, then cosine to the floor.

    Args:
        step: the step about to be taken, from 0; the curve has no other state.
        config: of the optimizer.
        num_steps: of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_fraction + (1 - config.final_fraction) * cosine


def build_optimizers(parts: Sequence[nn.Module], config: OptimizerConfig) -> list[list[Optimizer]]:
    """Optimizers of each model part; frozen parameters get none."""
    return [_part_optimizers(part, config) for part in parts]


def _part_optimizers(part: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    matrices, tables, norms = _split(part)
    optimizers: list[Optimizer] = []
    if config.kind == "muon" and matrices:
        muon = torch.optim.Muon(
            matrices,
            lr=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
        matrices = []
    if matrices or tables or norms:
        optimizers.append(_adamw(matrices + tables, norms, config))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _split(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters as matrices of layers, tables of ids, and norms."""
    matrices, tables, norms = [], [], []
    for wrapped_name, parameter in part.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            norms.append(parameter)
        elif clean_name(wrapped_name).startswith("layers."):
            matrices.append(parameter)
        else:
            tables.append(parameter)
    return matrices, tables, norms


def _adamw(decayed: list[nn.Parameter], norms: list[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(optimizers: Iterable[Optimizer], fraction: float) -> None:
    """Give every group its peak times ``fraction``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * fraction


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, pipeline_mesh: DeviceMesh | None
) -> Tensor:
    """Scale gradients to a total norm of at most ``max_norm``; returns the norm before, a plain scalar.

    Args:
        parameters: all of this rank, sharded or not.
        max_norm: of the whole model; 0 leaves the gradients as they are.
        pipeline_mesh: over which stages the norm is summed, if any.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if pipeline_mesh is not None:
        square = norm**2
        torch.distributed.all_reduce(square, group=pipeline_mesh.get_group())
        norm = square**0.5
    if max_norm:
        nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm
