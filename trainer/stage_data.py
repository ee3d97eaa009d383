"""What the stages of a tokenizer are trained and judged on: batches, random views of them, held-out pairs.

Dimensions: B pairs of this rank, R rows and U columns of a picture.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.augment import AugmentConfig, augment, draw_views, may_mirror, mirror
from trainer.processes import on_first_rank


class Batches(Protocol):
    """Where batches come from; a batch is a pure function of the step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> Any:
        """Object with ``images`` (B, R, U, 3) uint8 and ``captions`` (B strings)."""

    def figures(self) -> Mapping[str, float]:
        """Of the batches so far, the same names on all ranks; their means are logged beside the losses."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pairs that training never sees."""

    images: npt.NDArray[np.uint8]
    captions: Sequence[str]


class Pair(Protocol):
    """One picture with its caption."""

    @property
    def image(self) -> npt.NDArray[np.uint8]: ...
    @property
    def caption(self) -> str: ...


def held_out_of(pairs: Sequence[Pair]) -> HeldOut:
    """The arrays of held-out pairs."""
    return HeldOut(np.stack([pair.image for pair in pairs]), [pair.caption for pair in pairs])


def judged(held_out: HeldOut | None, figures: Callable[[HeldOut], Mapping[str, float]]) -> dict[str, float]:
    """Figures on the held-out pairs, which only the first process needs; empty on the others, which wait."""

    def judge() -> dict[str, float]:
        if held_out is None:
            raise ValueError("held-out pairs: the first process has none")
        return dict(figures(held_out))

    return on_first_rank(judge) or {}


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that is a pure function of (seed, step): the same on every rank and after a resume."""
    return torch.Generator().manual_seed(hash((seed, step)) % 2**63)


class Views(NamedTuple):
    """One batch of training."""

    images: Tensor
    """(B, R, U, 3) uint8: random views."""
    pictures: Tensor
    """The same whole, mirrored where the view is."""
    captions: Sequence[str]


def views_of(
    batches: Batches, augmentation: AugmentConfig, seed: int, device: torch.device
) -> Callable[[int], Views]:
    """Function of the step, with pictures on ``device``; ranks draw as one process with all their batches."""

    def make(step: int) -> Views:
        batch = batches.batch(step)
        may_be_mirrored = torch.tensor([may_mirror(caption) for caption in batch.captions])
        pictures = torch.as_tensor(batch.images, device=device)
        draws = draw_views(len(pictures) * dist.get_world_size(), step_generator(seed, step))
        ours = draws.tensor_split(dist.get_world_size(), dim=1)[dist.get_rank()]
        images, whole = (
            change(pictures, may_be_mirrored, augmentation, ours) for change in (augment, mirror)
        )
        return Views(images, whole, batch.captions)

    return make
