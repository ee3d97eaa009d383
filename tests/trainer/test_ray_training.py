"""The Ray launcher: a killed worker costs the steps since the newest checkpoint, and no more."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.runs import packed_folder
from trainer.checkpoint import complete_checkpoints
from trainer.metrics import read_metrics

psutil = pytest.importorskip("psutil")
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 30


def arguments(packed: Path, output: Path) -> list[str]:
    return [
        "--output", str(output), "--data.packed", str(packed), "--num-steps", str(NUM_STEPS),
        "--device", "cpu", "--checkpoint.every-steps", "2", "--metrics.every-steps", "1",
        "--no-exports-model",
    ]  # fmt: skip


def train_workers() -> list[Any]:
    """Worker processes of Ray Train on this machine."""
    names = [
        (process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])
    ]
    return [process for process, name in names if "ray::RayTrainWorker" in name or "ray::TrainWorker" in name]


@pytest.mark.ray
@pytest.mark.slow
def test_wrong_data_end_the_job_with_its_exit_status(tmp_path: Path) -> None:
    """No traceback and no ten tries: what is wrong would be wrong again."""
    command = [
        sys.executable, str(ROOT / "jobs" / "pretrain.py"),
        *arguments(tmp_path / "nowhere", tmp_path / "run"),
        "--launcher", "ray", "--ray.num-workers", "2", "--ray.no-uses-gpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "nowhere: no packed-" in last


@pytest.mark.ray
@pytest.mark.slow
def test_killed_worker_is_replaced_and_the_run_is_the_same(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path / "packed")
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    on_ray = ["--launcher", "ray", "--ray.num-workers", "2", "--ray.no-uses-gpu"]
    before = {process.pid for process in train_workers()}
    run = subprocess.Popen([*command, *arguments(packed, tmp_path / "ray"), *on_ray], env=environment)
    metrics = tmp_path / "ray" / "metrics.jsonl"
    while not any(record["step"] >= 5 for record in read_metrics(metrics)):
        assert run.poll() is None, "the job ended early"
        time.sleep(0.05)
    victim = next(process for process in train_workers() if process.pid not in before)
    victim.send_signal(signal.SIGKILL)
    assert run.wait() == 0
    assert complete_checkpoints(tmp_path / "ray" / "checkpoints")[-1].name == f"step-{NUM_STEPS:08d}"

    subprocess.run([*command, *arguments(packed, tmp_path / "alone")], env=environment, check=True)
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("ray", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == NUM_STEPS
