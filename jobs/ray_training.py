"""A training run in workers of Ray Train: restarted, after a failure, from the newest complete checkpoint.

Ray starts the processes and joins them to one group; everything else is ``trainer.train``, which finds its
own checkpoints. Ray's are not used: after a kill just behind ``report`` it was seen to restart from
nothing.
"""

import json
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.ray_cluster import ROOT, connect
from schemas.atomic_write import write_atomically
from trainer.non_finite import NonFiniteError
from trainer.run_config import TrainConfig
from trainer.train import TrainResult, train

logger = logging.getLogger(__name__)
LASTING_ERRORS = (NonFiniteError, FileNotFoundError, ValueError)
"""What another try would meet again: not finite, wrong settings, wrong data."""


def train_on_ray(
    config: TrainConfig, *, num_workers: int, uses_gpu: bool, cpus_per_worker: int, max_failures: int
) -> TrainResult:
    """Train on the cluster that RAY_ADDRESS names, or on this machine alone.

    Args:
        config: of the run; its ``output`` must be on storage that all workers see.
        num_workers: processes, one a GPU.
        uses_gpu: give each worker a GPU.
        cpus_per_worker: reserved for each.
        max_failures: restarts of the group of workers before the run is given up.

    Raises:
        NonFiniteError, ValueError, FileNotFoundError: of a worker, which another try would meet again.
        RuntimeError: when the run was given up; the cause is the last worker's error.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        # Workers import this repository; under `ray job submit --working-dir` they have it in their folder.
        connect({"env_vars": {"PYTHONPATH": str(ROOT)}})
    verdict = Path(config.output).absolute() / "ray" / f"verdict-{uuid.uuid4().hex}.json"
    resources = {"CPU": cpus_per_worker} | ({"GPU": 1} if uses_gpu else {})
    body: Callable[..., Any] = _train_here  # its type allows no result; with Train v2 there is one
    trainer = TorchTrainer(
        body,
        train_loop_config={"config": config, "verdict": verdict},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=uses_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(Path(config.output).absolute()),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if uses_gpu else "gloo"),
    )
    try:
        result: Any = trainer.fit()
    except Exception:  # Ray's own wrapping of it; a worker's verdict, if there is one, says it plainly
        _raise_verdict(verdict)
        raise
    _raise_verdict(verdict)
    assert isinstance(result.return_value, dict)
    return TrainResult(**result.return_value)


def _train_here(settings: dict[str, Any]) -> dict[str, object]:
    """Body of one worker; Ray has joined the processes already.

    An error that would come again is written down before it is raised: Ray ends the other workers and starts
    the group once more, and then none of them trains.
    """
    verdict: Path = settings["verdict"]
    if verdict.exists():
        return {}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return asdict(train(settings["config"]))
    except LASTING_ERRORS as error:
        kind = next(kind.__name__ for kind in LASTING_ERRORS if isinstance(error, kind))
        content = json.dumps({"kind": kind, "message": str(error)})
        write_atomically(verdict, content.encode())
        raise


def _raise_verdict(verdict: Path) -> None:
    """Raise again what a worker wrote down, if one did."""
    if verdict.exists():
        fields = json.loads(verdict.read_bytes())
        verdict.unlink()
        kinds = {kind.__name__: kind for kind in LASTING_ERRORS}
        raise kinds[fields["kind"]](fields["message"])
