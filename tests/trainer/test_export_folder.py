"""A model folder holds a whole model or none, whenever a second export into it is killed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny import CONFIG, LAYOUT, tiny_model
from trainer.export_folder import whole_export
from trainer.huggingface import export_model
from trainer.load_model import load_model

NUM_MATRICES = 7 * CONFIG.num_layers


def export(folder: Path, seed: int, max_shard_size: str = "60KB") -> None:
    parameters = tiny_model(seed=seed).named_parameters()
    export_model(folder, parameters, CONFIG, LAYOUT, torch.float32, max_shard_size=max_shard_size)


def seed_of(folder: Path) -> int:
    """Of the model in the folder, all of whose matrices must be of one."""
    model, _ = load_model(folder)
    (seed,) = [
        seed
        for seed in (0, 1)
        if sum(
            torch.equal(model.get_parameter(name), value)
            for name, value in tiny_model(seed=seed).named_parameters()
            if name.endswith("_proj.weight")
        )
        == NUM_MATRICES
    ]
    return seed


def killing_after(monkeypatch: pytest.MonkeyPatch, name: str, function: Any, num_calls: int) -> None:
    """Let the function be interrupted in a call after ``num_calls`` of them."""
    calls = iter(range(num_calls))

    def limited(*arguments: Any, **settings: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **settings)

    monkeypatch.setattr(name, limited)


def test_an_export_killed_while_it_writes_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    export(tmp_path, 0)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    killing_after(monkeypatch, "trainer.huggingface.save_file", save_file, 2)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, 1)
    assert seed_of(tmp_path) == 0


@pytest.mark.parametrize("num_moved", [0, 1, 3])
def test_an_export_killed_while_it_moves_its_files_leaves_none(
    num_moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, 0)
    with monkeypatch.context() as patch:
        killing_after(patch, "os.replace", os.replace, num_moved)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_model(tmp_path)
    export(tmp_path, 1)
    assert seed_of(tmp_path) == 1


def test_files_of_a_former_division_go_and_those_of_others_stay(tmp_path: Path) -> None:
    export(tmp_path, 0)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "model.safetensors").write_text("of a killed export")
    export(tmp_path, 1, "5GB")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert seed_of(tmp_path) == 1


def test_folders_in_an_export_are_replaced_with_it(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_export(tmp_path / "model") as partial:
            (partial / "adapter").mkdir()
            (partial / "adapter" / "adapter_config.json").write_text(text)
    assert (tmp_path / "model" / "adapter" / "adapter_config.json").read_text() == "new"
    assert not (tmp_path / "model" / ".partial").exists()
