"""Dropout that is a hash: its rate, its independence, and that a row's mask depends on the row alone."""

import pytest
import torch

from trainer.dropout import dropout, is_kept, layer_keys, row_keys

ROWS = row_keys(0, range(8))
KEYS = layer_keys(ROWS, 2)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_share_of_zeros_is_the_probability_along_every_axis(probability: float) -> None:
    dropped = ~is_kept(KEYS, 3, 256, 192, probability)
    for axes, count in (
        ((0, 1, 2), 8 * 256 * 192),
        ((0, 1), 8 * 256),
        ((0, 2), 8 * 192),
        ((1, 2), 256 * 192),
    ):
        deviation = (probability * (1 - probability) / count) ** 0.5
        shares = dropped.double().mean(axes)
        assert (shares - probability).abs().max() < 5 * deviation


def test_masks_of_rows_layers_steps_and_neighbours_are_independent() -> None:
    """Two independent masks of probability 1/2 agree in half of their places."""
    mask = is_kept(KEYS, 3, 256, 192, 0.5)
    others = {
        "rows": mask.roll(1, 0),
        "places": mask.roll(1, 1),
        "channels": mask.roll(1, 2),
        "matrices": is_kept(KEYS, 4, 256, 192, 0.5),
        "layers": is_kept(layer_keys(ROWS, 3), 3, 256, 192, 0.5),
        "steps": is_kept(layer_keys(row_keys(1, range(8)), 2), 3, 256, 192, 0.5),
    }
    for name, other in others.items():
        agreement = (mask == other).double().mean()
        assert abs(float(agreement) - 0.5) < 5 * 0.5 / mask.numel() ** 0.5, name


def test_a_row_draws_the_same_in_any_batch() -> None:
    x = torch.randn(8, 32, 24)
    whole = dropout(x, KEYS, 5, 0.3)
    assert torch.equal(whole[2:4], dropout(x[2:4], layer_keys(row_keys(0, [2, 3]), 2), 5, 0.3))
    assert torch.equal(whole[:, :20], dropout(x[:, :20], KEYS, 5, 0.3))
    kept = whole != 0
    torch.testing.assert_close(whole[kept], x[kept] / 0.7)
    assert dropout(x.bfloat16(), KEYS, 5, 0.3).dtype == torch.bfloat16


def test_compiled_code_draws_the_same_masks() -> None:
    """Where products overflow, compiled C++ is free to draw others."""
    x = torch.randn(8, 32, 24)
    compiled = torch.compile(lambda x, keys: dropout(x, keys, 5, 0.3))
    assert torch.equal(compiled(x, KEYS), dropout(x, KEYS, 5, 0.3))
