"""Recipes of training load, and say what the paper says."""

from pathlib import Path

import pytest

from jobs.config_file import parse_config
from jobs.pretrain import PretrainConfig, main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(
    path.name for pattern in ("pretrain_*.yaml", "instruct_*.yaml") for path in RECIPES.glob(pattern)
)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_and_flags_go_first(name: str) -> None:
    flags = ["--config", str(RECIPES / name), "--data.packed", "somewhere", "--data.micro-batch", "1"]
    config = parse_config(PretrainConfig, flags)
    assert config.data.packed == "somewhere"
    assert config.data.micro_batch == 1
    assert config.output.endswith(name.removesuffix(".yaml"))
    if "tiny" not in name:
        assert (config.optimizer.beta2, config.optimizer.epsilon, config.optimizer.weight_decay) == (
            0.95,
            1e-5,
            0.05,
        )
        assert config.parallel.precision == "bf16"
        assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (
            (0, 32, 0.05) if "full" in name else (16, 32, 0.05)
        )


def test_recipes_of_both_sizes_are_there() -> None:
    assert {f"{kind}_{size}.yaml" for kind in ("pretrain", "instruct") for size in ("8b", "14b")} <= set(
        NAMES
    )


def test_unknown_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("optimizer: {learning_rat: 1.0e-3}\n")
    assert main(["--config", str(tmp_path / "run.yaml")]) == 2
    message = capsys.readouterr().err
    assert "learning_rat" in message
    assert "learning_rate" in message


def test_missing_data_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--data.packed is missing" in capsys.readouterr().err
