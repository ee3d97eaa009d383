"""Views of pictures: what stays, what changes, and that the generator alone decides."""

import string

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import Golden
from tokenizer.augment import NO_MIRROR_WORDS, AugmentConfig, augment, draw_views, may_mirror, mirror

IDENTITY = AugmentConfig(min_area=1.0, max_log_aspect=0.0, mirror=0.0)


def views(images: torch.Tensor, config: AugmentConfig, seed: int = 0, mirrored: bool = True) -> torch.Tensor:
    allowed = torch.full((len(images),), mirrored)
    return augment(images, allowed, config, draw_views(len(images), torch.Generator().manual_seed(seed)))


@pytest.fixture
def images(tiny: Golden) -> torch.Tensor:
    return torch.as_tensor(tiny.images)


def test_no_change_asked_for_is_no_change(images: torch.Tensor) -> None:
    assert torch.equal(views(images, IDENTITY), images)


def test_mirror(images: torch.Tensor) -> None:
    always = AugmentConfig(min_area=1.0, max_log_aspect=0.0, mirror=1.0)
    assert torch.equal(views(images, always), images.flip(2))
    assert torch.equal(views(images, always, mirrored=False), images)


def test_the_generator_decides(images: torch.Tensor) -> None:
    config = AugmentConfig(max_turn_degrees=10, max_gain=0.2)
    assert torch.equal(views(images, config, 1), views(images, config, 1))
    assert not torch.equal(views(images, config, 1), views(images, config, 2))


def test_crops_keep_their_share_of_the_area() -> None:
    """On a ramp the spread of values of a view is the width of its crop."""
    ramp = torch.arange(224, dtype=torch.uint8).view(1, 1, 224, 1).expand(200, 224, 224, 3)
    config = AugmentConfig(min_area=0.5, mirror=0.0)
    across, down = views(ramp, config), views(ramp.transpose(1, 2), config)
    widths = (across.amax((1, 2, 3)).int() - across.amin((1, 2, 3)).int() + 1) / 224
    heights = (down.amax((1, 2, 3)).int() - down.amin((1, 2, 3)).int() + 1) / 224
    areas = widths * heights
    assert 0.48 < areas.min() < 0.6
    assert areas.max() > 0.9


def test_gain_stays_within_bounds(images: torch.Tensor) -> None:
    config = AugmentConfig(min_area=1.0, max_log_aspect=0.0, mirror=0.0, max_gain=0.1)
    difference = views(images, config).float() - images.float()
    assert 1 < difference.abs().max() <= 0.1 * 255 + 0.05 * 255 + 1


@pytest.mark.parametrize(
    ("caption", "allowed"),
    [
        ("a red fish", True),
        ("Left-facing fist", False),
        ("black rightwards arrow", False),
        ("leftover", True),
        ("a dog on the left.", False),
        ("left, a cat", False),
        ("(RIGHT)", False),
        ("the dog's right; a bright copyright sign", False),
        ("a bright copyright sign", True),
    ],
)
def test_captions_that_name_a_side_forbid_mirroring(caption: str, allowed: bool) -> None:
    assert may_mirror(caption) == allowed


MARKS = [
    *string.punctuation,
    *string.digits,
    *string.whitespace,
    "\u201c",
    "\u2019",
    "\u2014",
    "\u2026",
    "\u3002",
]


@pytest.mark.parametrize("mark", MARKS, ids=ascii)
def test_a_word_counts_whatever_stands_around_it_and_not_within_another(mark: str) -> None:
    for word in NO_MIRROR_WORDS:
        for written in (word, word.title(), word.upper()):
            for caption in (f"a dog, {written}{mark}", f"{mark}{written} of it", f"x{mark}{written}{mark}x"):
                assert not may_mirror(caption), caption
        assert may_mirror(f"a{mark}b{word}b{mark}c")


@pytest.mark.parametrize("wrong", [{"min_area": 0.0}, {"mirror": 1.5}, {"max_gain": 1.0}], ids=str)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="augment"):
        AugmentConfig(**wrong)


def test_shapes_and_dtype(images: torch.Tensor) -> None:
    out = views(images, AugmentConfig())
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert np.isfinite(out.numpy()).all()


def test_whole_pictures_are_mirrored_as_their_views(images: torch.Tensor) -> None:
    """Nothing but the mirror image is left of the same draws, whatever else the views do."""
    every = torch.cat([images] * 4)
    may = torch.arange(len(every)) % 3 > 0
    config = AugmentConfig(min_area=0.5, mirror=0.5, max_turn_degrees=10)
    draws = draw_views(len(every), torch.Generator().manual_seed(7))
    whole = mirror(every, may, config, draws)
    only_mirror = AugmentConfig(min_area=1.0, max_log_aspect=0.0, mirror=0.5)
    assert torch.equal(whole, augment(every, may, only_mirror, draws))
    is_mirrored = (whole != every).flatten(1).any(dim=1)
    assert 0 < is_mirrored.sum() < may.sum()
    assert not is_mirrored[~may].any()
