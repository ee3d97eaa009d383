"""``python -m tokenizer``: what it prints and with which status it ends."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tokenizer.conftest import GOLDEN_DIRECTORY, Golden
from tokenizer.__main__ import main
from tokenizer.checkpoint import load_model
from tokenizer.weights_file import read_tensors


@pytest.fixture
def pictures(tmp_path: Path, tiny: Golden) -> list[Path]:
    """The golden pictures as files that are 224x224 already, so that squashing leaves them alone."""
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(paths, tiny.images, strict=False):
        Image.fromarray(pixels).save(path)
    return paths


def test_encode_prints_one_json_object_a_picture(
    pictures: list[Path], tiny: Golden, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["encode", *map(str, pictures), "--tokenizer", str(tiny.directory), "--batch-size", "2"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in pictures]
    np.testing.assert_array_equal([line["codes"] for line in lines], tiny["codes"][:3])


def test_encode_goes_on_after_a_picture_that_fails(
    pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    missing = tmp_path / "missing.png"
    assert main(["encode", str(broken), str(pictures[0]), str(missing)]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["image"] for line in captured.out.splitlines()] == [str(pictures[0])]
    assert f"{broken}: " in captured.err
    assert f"{missing}: " in captured.err


def test_info_prints_configuration_parameters_and_hash(capsys: pytest.CaptureFixture[str]) -> None:
    directory = GOLDEN_DIRECTORY / "tiny512"
    assert main(["info", str(directory)]) == 0
    printed = json.loads(capsys.readouterr().out)
    model, digest = load_model(directory)
    assert printed["weights_sha256"] == digest
    stored = read_tensors(directory / "model.safetensors")
    num_stored = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert printed["num_parameters"] == num_stored == sum(printed["num_parameters_of"].values())
    assert printed["num_parameters_of"].keys() == dict(model.named_children()).keys()
    assert printed["config"] == model.config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "sed-2"], "did you mean 'seed-2'"),
        (["encode", "x.png", "--filter", "cubic"], "preprocess.filter"),
        (["encode", "x.png", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_drawn_tokenizers_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(["draw", str(tmp_path / name), "--seed", str(seed)]) == 0
    first, same, other = (load_model(tmp_path / name)[1] for name in "abc")
    assert first == same != other
