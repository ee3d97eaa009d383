"""Checkpoints are complete or invisible, whatever happens to the process that writes them."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.trainer.runs import metrics_of, packed_folder, run_alone, run_config
from tests.trainer.tiny import CONFIG, tiny_model
from trainer.checkpoint import (
    CheckpointConfig,
    CheckpointStore,
    Progress,
    TrainingState,
    complete_checkpoints,
    read_progress,
)
from trainer.export import load_checkpoint
from trainer.metrics import read_metrics
from trainer.optimizer import OptimizerConfig, build_optimizers
from trainer.processes import process_group
from trainer.run_config import ModelConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_asynchronous_write_holds_the_state_of_its_step(tmp_path: Path) -> None:
    """Weights and moments change while the write goes on; what is read back are those of the call."""
    with process_group(CPU):
        model = tiny_model()
        optimizers = build_optimizers([model], OptimizerConfig())
        state = TrainingState([model], optimizers, skips_frozen=False)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers[0][0].step()
        saved = [parameter.detach().clone() for parameter in model.parameters()]
        moments = [optimizers[0][0].state[p]["exp_avg"].clone() for p in model.parameters()]
        store = CheckpointStore(tmp_path, CheckpointConfig(), {})
        store.save(state, Progress(step=1, consumed_sequences=8))
        for _ in range(5):
            optimizers[0][0].step()
        store.finish()

        checkpoint = store.newest()
        assert checkpoint is not None
        assert store.load(checkpoint, state) == Progress(step=1, consumed_sequences=8)
        for parameter, expected in zip(model.parameters(), saved, strict=True):
            assert torch.equal(parameter, expected)
        for parameter, expected in zip(model.parameters(), moments, strict=True):
            assert torch.equal(optimizers[0][0].state[parameter]["exp_avg"], expected)


def test_unfinished_writes_are_invisible_and_removed(tmp_path: Path) -> None:
    for name in (".step-00000007.partial", ".step-00000001.deleted", "step-00000003", "step-3"):
        (tmp_path / name).mkdir()
    with process_group(CPU):
        store = CheckpointStore(tmp_path, CheckpointConfig(), {})
        assert store.newest() == tmp_path / "step-00000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-3"]


def test_a_run_that_saves_nothing_writes_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = CheckpointConfig(every_steps=0)
    config = run_config(packed_folder(tmp_path / "packed"), tmp_path / "run", checkpoint=checkpoint)
    assert run_alone(replace(config, num_steps=2)).is_finished
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(ValueError, match="saves nothing to export"):
        replace(config, exports_model=True)


def test_failed_write_stays_invisible_and_is_raised(tmp_path: Path) -> None:
    with process_group(CPU):
        model = tiny_model()
        state = TrainingState([model], build_optimizers([model], OptimizerConfig()), skips_frozen=False)
        store = CheckpointStore(tmp_path, CheckpointConfig(), {})
        (tmp_path / ".step-00000002.partial").mkdir()  # a second run in the same folder
        with pytest.raises(FileExistsError):
            store.save(state, Progress(step=2))
        assert store.newest() is None


def start_job(config: TrainConfig, num_ranks: int = 1) -> subprocess.Popen[bytes]:
    """The real job in a process of its own, or in those of torchrun, saving after every second step."""
    arguments = [
        "--output", config.output, "--data.packed", config.data.packed, "--data.global_batch", "8",
        "--num_steps", str(config.num_steps), "--model.preset", "tiny", "--checkpoint.every_steps", "2",
        "--metrics.every_steps", "1", "--device", "cpu", "--optimizer.warmup_steps", "2",
        "--no-exports-model",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    job = [*(launcher if num_ranks > 1 else []), str(ROOT / "jobs" / "pretrain.py"), *arguments]
    return subprocess.Popen([sys.executable, *job], env=environment, stderr=subprocess.DEVNULL)


def wait_for_step(config: TrainConfig, step: int, process: subprocess.Popen[bytes]) -> None:
    path = Path(config.output) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not any(record["step"] >= step for record in read_metrics(path)):
        assert process.poll() is None, "the job ended early"
        assert time.monotonic() < deadline, "the job does not advance"
        time.sleep(0.02)


@pytest.mark.parametrize("num_kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_and_stopped_jobs_resume_bit_identically(num_kills: int, tmp_path: Path) -> None:
    """Kills at random moments, then Ctrl-C, then SIGTERM, against a run without interruption."""
    num_steps = 4 * num_kills + 16
    config = run_config(packed_folder(tmp_path / "packed"), tmp_path / "killed", num_steps=num_steps)
    chance = random.Random(num_kills)
    for kill in range(num_kills):
        process = start_job(config)
        wait_for_step(config, 4 * kill + 3, process)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        for checkpoint in complete_checkpoints(tmp_path / "killed" / "checkpoints"):
            load_checkpoint(checkpoint)  # every tensor is there
    step = 4 * num_kills + 4
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start_job(config)
        wait_for_step(config, step, process)
        process.send_signal(number)
        assert process.wait() == 143
        stopped_at = complete_checkpoints(tmp_path / "killed" / "checkpoints")[-1]
        assert read_progress(stopped_at).step == metrics_of(config)[-1]["step"] < num_steps
        step = read_progress(stopped_at).step + 1
    assert start_job(config).wait() == 0

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = OptimizerConfig(warmup_steps=2)
    whole = replace(config, output=str(tmp_path / "whole"), model=ModelConfig(), optimizer=optimizer)
    run_alone(whole)
    torch.set_num_threads(num_threads)
    fields = ("step", "loss", "grad_norm")
    expected = [[record[name] for name in fields] for record in metrics_of(whole)]
    assert [[record[name] for name in fields] for record in metrics_of(config)] == expected
    assert len(expected) == num_steps


@pytest.mark.parametrize("num_kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_jobs_go_on_with_another_number_of_ranks(num_kills: int, tmp_path: Path) -> None:
    """Two ranks killed at random moments, one rank goes on, and so in turns; then the run of one rank."""
    psutil = pytest.importorskip("psutil")
    num_steps = 4 * num_kills + 8
    config = run_config(packed_folder(tmp_path / "packed"), tmp_path / "killed", num_steps=num_steps)
    chance = random.Random(num_kills)
    for kill in range(num_kills):
        process = start_job(config, num_ranks=2 - kill % 2)
        wait_for_step(config, 4 * kill + 3, process)
        time.sleep(chance.random())
        launcher = psutil.Process(process.pid)
        for killed in (launcher, *launcher.children(recursive=True)):
            killed.kill()
        process.wait()
    assert start_job(config).wait() == 0

    optimizer = OptimizerConfig(warmup_steps=2)
    whole = replace(config, output=str(tmp_path / "whole"), model=ModelConfig(), optimizer=optimizer)
    run_alone(whole)
    for field in ("step", "loss", "loss_text", "loss_image"):
        expected = [record[field] for record in metrics_of(whole)]
        assert [record[field] for record in metrics_of(config)] == pytest.approx(expected, abs=1e-6)
        assert len(expected) == num_steps


def test_checkpoint_loads_into_one_process_without_a_group(tmp_path: Path) -> None:
    config = run_config(packed_folder(tmp_path / "packed"), tmp_path / "run", num_steps=2)
    run_alone(config)
    assert not dist.is_initialized()
    model, layout, lora = load_checkpoint(complete_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert model.config.width == CONFIG.width
    assert layout.padded_size == model.config.vocab_size
    assert lora.rank == 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())
