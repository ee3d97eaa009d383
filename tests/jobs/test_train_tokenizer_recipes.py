"""Recipes of training tokenizers load, and ``released`` is what the published training code does."""

from pathlib import Path

import pytest

from jobs.config_file import parse_config
from jobs.train_tokenizer import TrainTokenizerConfig
from tokenizer.codebook_stage import RELEASED, CodebookConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def read(name: str) -> TrainTokenizerConfig:
    return parse_config(TrainTokenizerConfig, ["--config", str(RECIPES / name)])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("tokenizer_*.yaml")), ids=lambda path: path.stem)
def test_recipe_loads_into_its_own_folder(path: Path) -> None:
    config = read(path.name)
    assert config.output.name == path.stem
    assert config.data.input
    assert config.contrastive.query == "last"


def test_released_has_the_published_quirks_and_the_default_has_none() -> None:
    released, ours = read("tokenizer_released.yaml"), read("tokenizer_seed2.yaml")
    assert released.codebook == RELEASED
    assert ours.codebook == CodebookConfig() != RELEASED
    for run, other in (
        (released.contrastive_run, ours.contrastive_run),
        (released.codebook_run, ours.codebook_run),
    ):
        assert run.schedule == "released" != other.schedule
        assert run.decay_tables
        assert not other.decay_tables
        assert run.max_grad_norm == 0
        assert (run.lr, run.min_lr, run.batch_size) == (other.lr, other.min_lr, other.batch_size)
    assert released.care.kmeans_vectors == released.care.reseed_every == 0
