"""Whether a stage of tokenizer training may go on from a checkpoint: only with the settings that made it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from schemas.differences import flatten
from trainer.checkpoint import read_description
from trainer.stage_config import StageRunConfig

_MAY_CHANGE = ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every")
"""Of a run: ``batch_size`` with the number of ranks, ``steps`` as far as the rates of past steps stay."""

_SHOWN = 3
"""Changes in one message; the others are counted."""


def describe_stage(
    run: StageRunConfig, steps_per_epoch: int, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What a checkpoint says about the settings that decide the curve, as JSON.

    Args:
        run: length and rates.
        steps_per_epoch: of the data.
        settings: of network, loss and pictures, by name; dataclasses, paths and what JSON has.
    """
    entries: dict[str, Any] = {
        "run": run,
        "pairs a step": run.batch_size * dist.get_world_size(),
        "steps_per_epoch": steps_per_epoch,
        **settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(entries, default=_as_json))
    return {"settings": plain}


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def check_same_stage(checkpoint: Path, own: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the settings, unless a stage that is described so may go on from a checkpoint.

    Args:
        checkpoint: a complete one.
        own: what ``describe_stage`` gives.
    """
    description = read_description(checkpoint)
    if "settings" not in description:  # of an older release
        return
    saved, ours = description["settings"], own["settings"]
    before, now = flatten(saved), flatten(ours)
    compared = before.keys() & now.keys() - {f"run.{name}" for name in _MAY_CHANGE}
    if changed := sorted(name for name in compared if before[name] != now[name]):
        shown = [f"{name} was {before[name]}, this run has {now[name]}" for name in changed[:_SHOWN]]
        raise _refusal(checkpoint, shown + [f"{len(changed) - _SHOWN} more"] * (len(changed) > _SHOWN))
    known = {field.name for field in dataclasses.fields(StageRunConfig)}
    old = StageRunConfig(**{name: value for name, value in saved["run"].items() if name in known})
    new, per_epoch = StageRunConfig(**ours["run"]), ours["steps_per_epoch"]
    done = range(description["progress"]["step"])
    if any(old.lr_at(step, per_epoch) != new.lr_at(step, per_epoch) for step in done):
        change = f"run.steps was {old.steps}, this run has {new.steps}, which changes past learning rates"
        raise _refusal(checkpoint, [change])


def _refusal(checkpoint: Path, changes: Sequence[str]) -> ValueError:
    return ValueError(
        f"{checkpoint}: {'; '.join(changes)}; go on with the same data and settings, choose another "
        f"--output, or delete {checkpoint.parent.parent} to begin anew"
    )
