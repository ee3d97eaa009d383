"""The pretraining job says at its end how it went, and draws its curves."""

from pathlib import Path

import pytest

from jobs import pretrain
from tests.html_reader import HtmlPage
from tests.trainer.runs import packed_folder


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
