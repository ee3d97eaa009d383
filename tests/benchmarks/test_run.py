"""The table of all benchmarks: its arithmetic, its page, benchmarks that are left out or fail."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import run, short_runs
from benchmarks.table import Row, figure, markdown

ROOT = Path(__file__).resolve().parents[2]
MODULES = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
NO_BENCHMARKS = {"__init__", "run", "short_runs", "table", "naive_encoder", "gpu_stand_in", "ray_kills"}


def test_the_page_says_what_the_results_say() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    written = text[text.index(run.BEGIN) + len(run.BEGIN) : text.index(run.END)]
    assert written.strip() == run.render(), "run: python -m benchmarks.run --write docs/performance.md"


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{run.BEGIN}figures of yesterday{run.END}\nafter\n")
    run.write(page)
    once = page.read_text()
    run.write(page)
    assert page.read_text() == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "yesterday" not in once


def test_the_catalogue_names_every_benchmark() -> None:
    runs = short_runs.SHORT_RUNS.items()
    assert {entry.module or name for name, entry in runs} == MODULES - NO_BENCHMARKS


def test_more_is_always_better() -> None:
    speed = Row(what="", ours=30.0, unit="", baseline=10.0, limit=40.0, least_ratio=2.0, least_share=0.8)
    assert (speed.ratio, speed.share, speed.is_met) == (3.0, 0.75, False)
    memory = Row(what="", ours=50.0, unit="", baseline=100.0, limit=40.0, less_is_better=True, most=53)
    assert (memory.ratio, memory.share, memory.is_met) == (2.0, 0.8, True)
    nothing = Row(what="", ours=0.0, unit="", baseline=1.0, less_is_better=True)
    assert (nothing.ratio, nothing.is_met) == (None, None)
    assert speed.cells("name")[-2:] == ("ratio ≥ 2, share ≥ 80%", "**no**")


def test_figures_and_cells_of_a_table() -> None:
    assert [figure(value) for value in (0, 0.00004, 0.456, 12.34, 123.4, 28309)] == [
        "0", "4e-05", "0.456", "12.3", "123", "28,309"
    ]  # fmt: skip
    assert markdown(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_short_run_of_a_real_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = short_runs.ShortRun(short_runs.scale, flags=("--shards", "20"))
    monkeypatch.setitem(run.SHORT_RUNS, "scale", few)
    results = tmp_path / "results.json"
    assert run.main(["--only", "scale", "trainer_gpu", "--json", str(results)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(results.read_bytes())
    first, second = sorted(content["records"], key=lambda record: "rows" not in record)
    (row,) = first["rows"]
    assert row["ours"] > 0
    assert "driver, 20 shards" in printed
    assert second == {"benchmark": "trainer_gpu", "left_out": "no GPU here"}
    assert "trainer_gpu: left out: no GPU here" in printed
    page = tmp_path / "page.md"
    page.write_text(run.BEGIN + run.END)
    run.write(page, tmp_path)
    assert "driver, 20 shards" in page.read_text()


def test_a_benchmark_that_fails_keeps_its_old_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    old = {"benchmark": "kills", "rows": []}
    results.write_text(json.dumps({"device": run.device(), "records": [old]}))
    broken = short_runs.ShortRun(short_runs.kills, flags=("--no-such-flag",))
    monkeypatch.setitem(run.SHORT_RUNS, "kills", broken)
    assert run.main(["--only", "kills", "--json", str(results)]) == 1
    assert "kills: failed: exit status 2" in capsys.readouterr().out
    assert json.loads(results.read_bytes())["records"] == [old]


def test_what_kills_prints() -> None:
    said = "6 kills, 4 runs ended, 1 differ from the undisturbed run\n     2  SIGKILL at start\n"
    (row,) = short_runs.kills(said)
    assert (row.ours, row.is_met) == (1, False)
    with pytest.raises(ValueError, match="do not say"):
        short_runs.kills("Killed")


def test_figures_that_changed_fail_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = short_runs.ShortRun(short_runs.encoder, flags=("--shards", "10"))
    monkeypatch.setitem(run.SHORT_RUNS, "scale", wrong)
    assert run.main(["--only", "scale"]) == 1
    assert "scale: failed: its figures are not those that short_runs.py expects" in capsys.readouterr().out


def test_results_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"device": "another", "records": []}))
    with pytest.raises(ValueError, match="measured on another"):
        run.merge(results, [])
