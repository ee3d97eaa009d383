"""Checkpoints: written beside the training, complete or invisible, loadable under any other parallelism.

A checkpoint is a folder ``step-00001000`` of PyTorch's distributed format and a ``progress.json``. It is
written as ``.step-00001000.partial`` and renamed when every rank has written its part, so that a folder
with a plain name is complete, whenever the run was killed. State is stored by parameter name: stages,
shards and ranks may differ on load. Schedules and random numbers are functions of the step and need no
state; the data needs one integer.
"""

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from schemas.atomic_write import flush_to_disk

logger = logging.getLogger(__name__)

_COMPLETE = re.compile(r"step-(\d{8})")
_RESCUE_S = 600.0
_OPTIMIZER = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 1000
    """0 saves nothing, not even at the end; for measurements."""
    keep: int = 3
    """Newest checkpoints that stay; 0 keeps all."""
    is_async: bool = True
    """Write while training goes on; memory for one copy of the state is needed."""

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ValueError(f"checkpoint.every_steps must be at least 0, got {self.every_steps}")
        if self.keep < 0:
            raise ValueError(f"checkpoint.keep must be at least 0, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; the rest of its state are tensors."""

    step: int = 0
    """Optimizer steps taken."""
    consumed_sequences: int = 0
    learned_ids: int = 0
    seed: int = 0
    num_rows: int = 0
    """Rows of the packed set, to notice another set on resume."""
    mixture: str = ""
    """Identity of the packed set's build; empty in checkpoints of older releases."""


class TrainingState:
    """Model parts and their optimizers, as one dictionary by parameter name."""

    def __init__(
        self, parts: Sequence[nn.Module], optimizers: Sequence[Sequence[Optimizer]], skips_frozen: bool
    ) -> None:
        """Take parts and, for each, its optimizers.

        Args:
            parts: model, or pipeline stages of this rank.
            optimizers: of each part.
            skips_frozen: leave out parameters that are not trained; they come from elsewhere on load.
        """
        self._parts = parts
        self._optimizers = optimizers
        self._options = StateDictOptions(ignore_frozen_params=skips_frozen, strict=False)

    def collect(self) -> dict[str, Any]:
        """Tensors of this rank (sharded ones as DTensors)."""
        model: dict[str, Any] = {}
        for part in self._parts:
            model |= get_model_state_dict(part, options=self._options)
        return {"model": model, "optimizer": _without_groups(self._optimizer_state())}

    def _optimizer_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for part, optimizers in zip(self._parts, self._optimizers, strict=True):
            for optimizer in optimizers:
                state |= get_optimizer_state_dict(part, optimizer, options=_OPTIMIZER)
        return state

    def apply(self, state: dict[str, Any]) -> None:
        """Put loaded tensors into model and optimizers; settings of the optimizers stay those of the run."""
        for part in self._parts:
            set_model_state_dict(part, state["model"], options=self._options)
        for part, optimizers in zip(self._parts, self._optimizers, strict=True):
            for optimizer in optimizers:
                own = get_optimizer_state_dict(part, optimizer, options=_OPTIMIZER)
                merged = {name: state["optimizer"].get(name, value) for name, value in own.items()}
                set_optimizer_state_dict(part, optimizer, merged, options=_OPTIMIZER)


def _without_groups(state: dict[str, Any]) -> dict[str, Any]:
    """Only the moments: learning rates and the like belong to the configuration."""
    return {name: value for name, value in state.items() if not name.startswith("param_groups.")}


class CheckpointStore:
    """The checkpoints of one run. Every rank makes one and calls the same methods at the same steps."""

    def __init__(self, folder: Path, config: CheckpointConfig, description: dict[str, Any]) -> None:
        """Open the store; leftovers of killed writes are removed.

        Args:
            folder: on storage that all ranks see; made by the first save, when the run is known to be one.
            config: of the run.
            description: written into every ``progress.json`` (model, vocabulary, adapters), for export.
        """
        self.folder = folder
        self._config = config
        self._description = description
        # Saving runs in a thread: its collectives must not mix with those of the training.
        self._group = dist.new_group(backend="gloo")
        self._pending: tuple[Path, Future[Any]] | None = None
        # Kept, not read from the folder: ranks would see another's rename at different times.
        self._newest_step = -1
        if dist.get_rank() == 0:
            for leftover in (*folder.glob(".step-*.partial"), *folder.glob(".step-*.deleted")):
                shutil.rmtree(leftover)
        dist.barrier(group=self._group)

    def save(self, state: TrainingState, progress: Progress, is_final: bool = False) -> None:
        """Begin to write a checkpoint; waits for an earlier one, and for this one when final."""
        self.finish()
        partial = self.folder / f".step-{progress.step:08d}.partial"
        if progress.step == self._newest_step or not self._config.every_steps:
            return
        self._newest_step = progress.step
        if dist.get_rank() == 0:
            partial.mkdir(parents=True)
            document = {"format": 1, "progress": asdict(progress), **self._description}
            (partial / "progress.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        dist.barrier(group=self._group)
        future = dcp.async_save(state.collect(), checkpoint_id=partial, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = (partial, future)
        if is_final or not self._config.is_async:
            self.finish()

    def poll(self) -> None:
        """Make a finished write visible; raises what went wrong in it."""
        if self._pending is not None and self._pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the write under way and make it visible."""
        if self._pending is None:
            return
        partial, future = self._pending
        self._pending = None
        future.result()
        if dist.get_rank() == 0:
            for path in (*filter(Path.is_file, partial.rglob("*")), partial):
                flush_to_disk(path)
            complete = self.folder / partial.name.removeprefix(".").removesuffix(".partial")
            os.rename(partial, complete)
            flush_to_disk(self.folder)
            logger.info("checkpoint=%s", complete)
            self._prune()

    def rescue(self, waits_for_all: bool) -> None:
        """Complete the write under way before an error ends the run; what goes wrong in it is only logged.

        Args:
            waits_for_all: every rank ends with the error and so takes part in the write. Otherwise some may
                be gone, and the write is waited for no longer than ten minutes.
        """
        if self._pending is None:
            return
        try:
            self._pending[1].result(None if waits_for_all else _RESCUE_S)
            self.finish()
        except (Exception, CheckpointException) as error:
            logger.warning("the checkpoint under way was lost: %r", error)

    def _prune(self) -> None:
        complete = complete_checkpoints(self.folder)
        for old in complete[: -self._config.keep] if self._config.keep else []:
            doomed = old.with_name(f".{old.name}.deleted")
            os.rename(old, doomed)
            shutil.rmtree(doomed)

    def newest(self) -> Path | None:
        """The newest complete checkpoint, the same on every rank."""
        found = complete_checkpoints(self.folder)[-1:] if dist.get_rank() == 0 else []
        box = [str(found[0]) if found else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return Path(box[0]) if box[0] is not None else None

    def load(self, checkpoint: Path, state: TrainingState) -> Progress:
        """Read a checkpoint, written under any parallelism, into ``state``.

        Raises:
            ValueError: it lacks tensors or has them in other shapes.
        """
        tensors = state.collect()
        try:
            dcp.load(tensors, checkpoint_id=checkpoint, process_group=self._group)
        except CheckpointException as error:  # no Exception, and a traceback of each rank
            reason = str(next(iter(error.failures.values()))[0])
            raise ValueError(
                f"{checkpoint} does not fit this run: {reason}; resume with the same settings, or choose "
                "another output folder"
            ) from error
        state.apply(tensors)
        progress = read_progress(checkpoint)
        self._newest_step = progress.step
        return progress


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _COMPLETE.fullmatch(path.name))


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood when ``checkpoint`` was written."""
    return Progress(**read_description(checkpoint)["progress"])


def read_description(checkpoint: Path) -> dict[str, Any]:
    """All of ``progress.json``.

    Raises:
        FileNotFoundError: if ``checkpoint`` is not a checkpoint folder.
    """
    path = checkpoint / "progress.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a folder such as checkpoints/step-00001000")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def load_full_model(checkpoint: Path, weights: dict[str, Tensor]) -> None:
    """Read tensors of a checkpoint's model in place, in one process without any process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"model": weights}, checkpoint_id=checkpoint, no_dist=True)


def seed_step(seed: int, step: int, data_rank: int) -> None:
    """Give the random numbers of one step (dropout) a start that depends on nothing before it."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + data_rank)
