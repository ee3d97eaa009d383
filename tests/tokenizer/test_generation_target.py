"""Targets of the generation head: CLIP through transformers, and the substitute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.tokenizer.conftest import Golden
from tests.tokenizer.training_golden import stage1_model
from tokenizer.generation_target import ClipTarget, SubstituteTarget
from tokenizer.thumbnail import thumbnails
from tokenizer.vit import PIXEL_MEAN, PIXEL_STD


@pytest.fixture
def images(tiny: Golden) -> torch.Tensor:
    return torch.as_tensor(tiny.images)


def test_clip_target_is_transformers_on_the_normalised_picture(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224,
        patch_size=56, projection_dim=10,
    )  # fmt: skip
    tower = CLIPVisionModelWithProjection(config).eval()
    tower.save_pretrained(tmp_path / "image_encoder")
    target = ClipTarget(f"{tmp_path}:image_encoder", torch.float32)
    assert target.width == 10
    pixels = (images.numpy() / 255.0 - PIXEL_MEAN) / PIXEL_STD
    with torch.no_grad():
        expected = tower(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)).image_embeds
    torch.testing.assert_close(target(images), expected, atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_substitute_holds_the_feature_and_the_principal_components(images: torch.Tensor) -> None:
    views = torch.cat([images, images.flip(2), images.flip(1)])
    target = SubstituteTarget(stage1_model(), num_components=5)
    assert target.width == 16 + 5
    target.components.fit(thumbnails(views))
    out = target(views)
    pixels = thumbnails(views).flatten(1).double().numpy()
    centred = pixels - pixels.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    ours = out[:, 16:].double().numpy()
    theirs = centred @ axes[:5].T
    for column in range(5):  # up to sign and scale
        correlation = np.corrcoef(ours[:, column], theirs[:, column])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-3)
    ratio = ours.std(axis=0)[0] / ours.std(axis=0)[4]
    assert ratio == pytest.approx((singular[0] / singular[4]) ** 0.5, rel=1e-3)  # half-way to whitening
    features = target.model.image_features(views)[:, -1]
    torch.testing.assert_close(out[:, :16], features * 2)  # 0.5 * sqrt(16)
    assert 0.2 < out.std() < 0.8
