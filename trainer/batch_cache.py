"""Inputs of a frozen network, made once: views of all pictures, drawn from at random instead of made anew."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.stage_data import step_generator


class BatchCache:
    """Features and targets of a fixed number of batches; as a function of the step it gives random mixtures
    of them."""

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]], num_batches: int, seed: int) -> None:
        """Run ``make`` for the first ``num_batches`` steps; the first tensor is kept in half precision."""
        batches = [make(step) for step in range(num_batches)]
        self._features = torch.cat([features.half() for features, _ in batches])
        self._targets = torch.cat([targets for _, targets in batches])
        self._batch_size = len(batches[0][0])
        self._seed = seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """A random batch; a pure function of the step."""
        order = torch.randperm(len(self._targets), generator=step_generator(self._seed, step))
        rows = order[: self._batch_size].to(self._targets.device)
        return self._features[rows].float(), self._targets[rows]
