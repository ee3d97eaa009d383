"""One run at a time in a folder, on all ranks, and none shut out by a dead one."""

import errno
import logging
import signal
from pathlib import Path

import pytest
import torch

from tests.trainer.runs import metrics_of, packed_folder, run_alone, run_config, run_in_processes
from tests.trainer.test_checkpoint import start_job, wait_for_step
from trainer.processes import process_group
from trainer.run_lock import run_lock

CPU = torch.device("cpu")


def test_a_second_start_leaves_the_run_in_progress_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics and the checkpoint that it writes; when it was killed, the next start goes on."""
    monkeypatch.setattr("trainer.run_lock._WAIT_S", 0.0)
    config = run_config(packed_folder(tmp_path / "packed"), tmp_path / "run", num_steps=10_000)
    first = start_job(config)
    wait_for_step(config, 3, first)
    partial = tmp_path / "run" / "checkpoints" / ".step-00009999.partial"
    partial.mkdir()
    try:
        with pytest.raises(ValueError, match=rf"another run is at work in it \(process {first.pid} on .*"):
            run_alone(config)
        assert partial.exists()
        wait_for_step(config, int(metrics_of(config)[-1]["step"]) + 2, first)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = start_job(config)
    wait_for_step(config, int(metrics_of(config)[-1]["step"]) + 2, second)
    second.send_signal(signal.SIGTERM)
    assert second.wait() == 143
    steps = [record["step"] for record in metrics_of(config)]
    assert steps == list(range(1, len(steps) + 1))
    assert not partial.exists()


def refusals(folder: str) -> str:
    """What one of two ranks is told while another holder is at work."""
    try:
        with run_lock(Path(folder), wait_s=0.0):
            return ""
    except ValueError as error:
        return str(error)


def test_every_rank_is_refused(tmp_path: Path) -> None:
    with process_group(CPU), run_lock(tmp_path / "run"):
        messages = run_in_processes(refusals, 2, str(tmp_path / "run"))
        assert messages[0] == messages[1]
        assert "another run is at work" in messages[0]
    assert run_in_processes(refusals, 2, str(tmp_path / "run")) == ["", ""]
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with caplog.at_level(logging.WARNING), process_group(CPU), run_lock(tmp_path):
        assert "cannot be locked" in caplog.text
