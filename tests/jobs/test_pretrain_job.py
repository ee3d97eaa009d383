"""The pretraining job says at its end how it went, and draws its curves."""

from pathlib import Path

import pytest

from jobs import pretrain
from tests.html_reader import HtmlPage
from tests.trainer.runs import packed_folder
from trainer.metrics import read_metrics


def test_the_end_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, output = packed_folder(tmp_path / "packed"), tmp_path / "run"
    flags = ["--data.packed", str(packed), "--output", str(output), "--model.preset", "test"]
    flags += ["--device", "cpu", "--num-steps", "4", "--metrics.every-steps", "2"]
    assert pretrain.main(flags) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("finished after 4 steps, loss ")
    for part in ("curves.html", "checkpoints", "model"):
        assert str(output / part) in printed
        assert (output / part).exists()
    page = HtmlPage((output / "curves.html").read_text())
    page.check_needs_nothing_else()
    assert "Loss by source" in page.text
    flags[flags.index("--num-steps") + 1] = "2"
    assert pretrain.main(flags) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"nothing was to be done: {output} holds step 4, num_steps is 2; a larger")


def test_a_run_that_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.summarize(tmp_path, pretrain.TrainResult(step=1, is_finished=False), num_steps=4)
    printed = capsys.readouterr().out
    assert printed.startswith("stopped after 1 steps\n")
    assert "the same command goes on" in printed
    assert not (tmp_path / "curves.html").exists(), "nothing to draw a line through"


def test_wrong_settings_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, output = packed_folder(tmp_path / "packed"), tmp_path / "run"
    flags = ["--data.packed", str(packed), "--output", str(output), "--model.preset", "test"]
    flags += ["--device", "cpu", "--data.global-batch", "5", "--data.micro-batch", "2"]
    assert pretrain.main(flags) == 2
    assert "data.global_batch (5) must be a multiple of data.micro_batch (2)" in capsys.readouterr().err
    assert not output.exists()


def test_the_log_says_early_that_a_run_goes_and_how_often_it_sees_its_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """24 rows, 8 a step: 13 steps are more than four passes. The file has every N-th step only."""
    packed, output = packed_folder(tmp_path / "packed"), tmp_path / "run"
    flags = ["--data.packed", str(packed), "--output", str(output), "--model.preset", "test"]
    flags += ["--device", "cpu", "--no-exports-model", "--metrics.every-steps", "3", "--num-steps"]
    caplog.set_level("INFO")
    assert pretrain.main([*flags, "12"]) == 0
    assert not any("passes=" in message for message in caplog.messages), "four passes are usual"
    caplog.clear()
    assert pretrain.main([*flags, "16"]) == 0
    assert "steps=16 sequences=24 passes=5.3" in caplog.messages
    steps = [message.split()[0] for message in caplog.messages if message.startswith("step=")]
    assert steps == ["step=13", "step=15"]
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == [3, 6, 9, 12, 15]
