"""The GPU benchmark runs from end to end; on a CPU, with the tiny model."""

import json
import sys

import pytest

from benchmarks import trainer_gpu


def test_a_measurement_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--device", "cpu", "--preset", "tiny", "--no-compiled", "--length", "256", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["trainer_gpu", *arguments, "--micro-batch", "1", "--accumulate", "2"])
    trainer_gpu.main()
    record = json.loads(capsys.readouterr().out)
    assert record["preset"] == "tiny"
    assert record["ids_per_s"] > 0
    assert 0 <= record["data_wait_fraction"] < 1


def test_a_model_that_does_not_fit_is_tried_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process stands in for a GPU that holds micro-batches of two of the larger model."""
    tried = []

    class Outcome:
        def __init__(self, command: list[str]) -> None:
            size = int(command[command.index("--micro-batch") + 1])
            tried.append((command[command.index("--preset") + 1], size, command[-1]))
            too_large = "8b" in tried[-1][0] and size > 2
            self.returncode = trainer_gpu.OUT_OF_MEMORY if too_large else 0

    monkeypatch.setattr(trainer_gpu.subprocess, "run", Outcome)
    trainer_gpu.run_plan(trainer_gpu.argument_parser().parse_args([]))
    assert tried == [
        ("1b", 16, "--no-compiled"),
        ("1b", 16, "--compiled"),
        ("seed-llama-8b", 4, "--no-compiled"),
        ("seed-llama-8b", 2, "--no-compiled"),
        ("seed-llama-8b", 2, "--compiled"),
    ]
