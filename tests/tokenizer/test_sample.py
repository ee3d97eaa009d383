"""The tokenizer that ships: what its model card says, on pictures that are in the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.inputs import expand_inputs
from pipeline.training_pairs import read_training_pairs
from tokenizer.augment import AugmentConfig
from tokenizer.checkpoint import load_model
from tokenizer.detokenizer import load_detokenizer
from tokenizer.preprocess import PreprocessConfig
from trainer.evaluation.codes import code_figures

SHARDS = Path(__file__).resolve().parents[2] / "samples" / "pairs"


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    pairs = list(
        read_training_pairs(expand_inputs([str(SHARDS / "00000.tar")]), PreprocessConfig(color="clean"))
    )
    return np.stack([pair.image for pair in pairs])


def test_codes_survive_a_crop_and_tell_pictures_apart(pictures: np.ndarray) -> None:
    """Photographs, which it hardly knows: weaker than on emoji, and still far from chance."""
    model, _ = load_model("sample")
    figures = code_figures(model.eval(), pictures, AugmentConfig(), seed=0)
    assert figures["agreement light crop %"] > 4 * figures["agreement random pairs %"]
    assert figures["agreement random pairs %"] < 15
    assert figures["distinct rows %"] > 90


def test_it_draws_without_any_download(pictures: np.ndarray) -> None:
    detokenizer = load_detokenizer("sample")
    white, black = (np.full((1, 224, 224, 3), value, np.uint8) for value in (255, 0))
    drawn = detokenizer.draw(detokenizer.tokenizer.encode(np.concatenate([white, black, pictures[:1]])))
    assert drawn.shape == (3, 64, 64, 3)
    assert drawn[0].mean() > drawn[1].mean() + 40


def test_every_stored_number_is_finite() -> None:
    model, _ = load_model("sample")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
