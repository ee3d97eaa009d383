"""The evaluation job: scores of files, reports, and refusals that name the line."""

import json
import re
from pathlib import Path

import pytest

from jobs.config_file import parse_config
from jobs.evaluate import main
from pipeline.training_pairs import PairDataConfig

CAPTION = {"caption": "A red fish swims.", "references": ["a red fish swims", "red fish"]}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [CAPTION, {"caption": "blue hat", "references": ["a green tree in the garden"]}]
    file = write(tmp_path / "captions.jsonl", rows)
    assert main(["captions", "--file", str(file), "--output", str(tmp_path / "result")]) == 0
    table = json.loads((tmp_path / "result.json").read_text())["results"]["captions"]
    assert table["captions"] == 2
    assert 0 < table["BLEU-1"] < 100
    assert table["CIDEr-D"] > 100
    assert (tmp_path / "result.md").read_text() in capsys.readouterr().out


def test_answers(tmp_path: Path) -> None:
    rows = [{"answer": "Two", "annotators": ["2"] * 9 + ["3"]}, {"answer": "no", "annotators": ["yes"] * 10}]
    main(["answers", "--file", str(write(tmp_path / "a.jsonl", rows)), "--output", str(tmp_path / "result")])
    assert json.loads((tmp_path / "result.json").read_text())["results"]["answers"]["VQA accuracy %"] == 50


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CAPTION, ["no object"]], r"c\.jsonl:2: expected a JSON object"),
        ([CAPTION, {"caption": "x"}], "row 2: expected a string 'caption'"),
        ([{"caption": "x", "references": []}], "row 1: 'references' must hold"),
        ([], "no rows"),
    ],
)
def test_bad_rows_are_named(
    rows: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "c.jsonl", rows)
    assert main(["captions", "--file", str(file), "--output", str(tmp_path / "o")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o.json").exists()


def test_config_files_are_strict_and_overridable(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("input: [a.tar, b.tar]\npreprocess: {color: clean}\nheld_out_fraction: 0.5\n")
    config = parse_config(PairDataConfig, ["--config", str(path), "--held-out-fraction", "0.25"])
    assert config.input == ("a.tar", "b.tar")
    assert config.preprocess.color == "clean"
    assert config.held_out_fraction == 0.25
    path.write_text("preprocess: {colour: clean}\n")
    with pytest.raises(
        ValueError, match=r"data.yaml: preprocess.colour: unknown setting; did you mean 'color'"
    ):
        parse_config(PairDataConfig, ["--config", str(path)])
    path.write_text("held_out_fraction: 2\n")
    with pytest.raises(ValueError, match=r"data\.yaml.*held_out_fraction"):
        parse_config(PairDataConfig, ["--config", str(path)])
