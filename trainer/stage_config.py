"""Settings of one run of a tokenizer stage: length, rates, batch, precision, intervals."""

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class StageRunConfig:
    """How long and how fast. Defaults are the release's stage 1, where they exist."""

    steps: int = 10_000
    """Optimiser steps of the whole run, those before a resume included."""
    batch_size: int = 64
    """Pairs per rank."""
    lr: float = 3e-5
    """Learning rate at the peak."""
    min_lr: float = 3e-6
    """At the end."""
    warmup_lr: float = 3e-7
    """At the beginning; it rises to the peak over ``warmup_steps``."""
    warmup_steps: int = 2000
    schedule: Literal["cosine", "released"] = "cosine"
    """``cosine``: per step, to ``min_lr`` at the end. ``released``: constant through the first epoch after
    the warm-up, then one cosine step per epoch over ``max_epochs``."""
    max_epochs: int = 10
    """Length of the ``released`` schedule."""
    weight_decay: float = 0.05
    decay_tables: bool = False
    """The release also decays queries, position tables and the codebook (every tensor of two or more
    dimensions)."""
    max_grad_norm: float = 0.0
    """0: no clipping, as released."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks, trained and frozen; losses and features that feed them stay fp32."""
    log_every: int = 20
    """Steps between lines of metrics."""
    evaluate_every: int = 0
    """Steps between evaluations on held-out pairs; 0: only at the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "max_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm", "warmup_lr", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"run.{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"run.min_lr {self.min_lr} must be between 0 and run.lr {self.lr}")

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context in which networks compute in ``precision``."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a 0-based step."""
        if step < self.warmup_steps and (self.schedule == "cosine" or step < steps_per_epoch):
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        if self.schedule == "released":
            progress = (step // steps_per_epoch) / self.max_epochs
        else:
            progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
