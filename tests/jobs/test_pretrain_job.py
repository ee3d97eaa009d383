"""The pretraining job says at its end how it went, and draws its curves."""

from pathlib import Path
from typing import Any

import pytest

from jobs import pretrain
from tests.html_reader import HtmlPage
from tests.trainer.runs import packed_folder
from trainer.metrics import read_metrics
from trainer.train import Trainer


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
    assert "finished" not in printed
    assert '"num_steps": 4' in (output / "config.json").read_text(), "what was trained with"


def test_a_run_that_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.summarize(tmp_path, pretrain.TrainResult(step=1, is_finished=False), num_steps=4)
    printed = capsys.readouterr().out
    assert printed.startswith("stopped after 1 steps\n")
    assert "the same command goes on" in printed
    assert not (tmp_path / "curves.html").exists(), "nothing to draw a line through"


def test_a_stop_between_two_records_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of the summary is of the step it names, and the curves begin and end with the run."""
    packed, output = packed_folder(tmp_path / "packed"), tmp_path / "run"
    flags = ["--data.packed", str(packed), "--output", str(output), "--model.preset", "test"]
    flags += ["--device", "cpu", "--no-exports-model", "--metrics.every-steps", "10", "--num-steps", "5"]
    take_step = Trainer._step

    def stops_at_three(trainer: Trainer, data: Any) -> Any:
        trainer._stop.is_set |= trainer.progress.step == 2
        return take_step(trainer, data)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stops_at_three)
        assert pretrain.main(flags) == 143
    losses = {record["step"]: record["loss"] for record in read_metrics(output / "metrics.jsonl")}
    assert list(losses) == [1, 3]
    course = f"loss {losses[1]:.2f} at step 1, {losses[3]:.2f} at step 3\n"
    assert capsys.readouterr().out.startswith(f"stopped after 3 steps, {course}")
    assert (output / "curves.html").exists()

    assert pretrain.main(flags) == 0
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 3, 5]
    assert all("ids_per_s" in record for record in records)
    course = f"loss {losses[1]:.2f} at step 1, {records[-1]['loss']:.2f} at step 5\n"
    assert capsys.readouterr().out.startswith(f"finished after 5 steps, {course}")


def test_settings_that_change_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--data.packed", str(packed_folder(tmp_path / "packed")), "--model.preset", "test"]
    flags += ["--device", "cpu", "--no-exports-model", "--output", str(tmp_path / "run"), "--num-steps"]
    caplog.set_level("INFO")
    assert pretrain.main([*flags, "2"]) == 0
    assert not any("instead of" in message for message in caplog.messages)
    changed = ["--data.global-batch", "4", "--optimizer.learning-rate", "1e-3"]
    assert pretrain.main([*flags, "3", *changed]) == 0
    assert [message for message in caplog.messages if "instead of" in message] == [
        "num_steps: 3 instead of 2 from step 3 on",
        "data.global_batch: 4 instead of 8 from step 3 on",
        "optimizer.learning_rate: 0.001 instead of 0.00015 from step 3 on",
    ]
    caplog.clear()
    assert pretrain.main([*flags, "4", *changed]) == 0
    assert [message for message in caplog.messages if "instead of" in message] == [
        "num_steps: 4 instead of 3 from step 4 on"
    ]


def test_no_name_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--data.packed", "packed", "--output", ""]) == 2
    assert "--output is empty: name the folder of the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "reason"), [("/proc/run", "No such file or directory"), ("file/run", "Not a directory")]
)
def test_a_folder_that_cannot_be_written_ends_in_one_line(
    output: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / output
    packed = packed_folder(tmp_path / "packed")
    flags = ["--data.packed", str(packed), "--model.preset", "test", "--device", "cpu"]
    assert pretrain.main([*flags, "--output", str(place)]) == 2
    printed = capsys.readouterr().err
    assert printed == f"error: --output {place}: cannot be written: {reason}; choose another folder\n"


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
    """24 rows, 8 a step: 13 steps are more than four passes. The file has every N-th step and the ends."""
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
    assert steps == ["step=13", "step=15", "step=16"]
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == [1, 3, 6, 9, 12, 15, 16]
