"""Frechet distance against torchmetrics and a closed form; CLIP similarity with a small random CLIP."""

import pytest
import torch

from trainer.evaluation.pictures import extract, frechet_distance, paired_similarity


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal Gaussians: |difference of means|^2 + sum of (difference of deviations)^2."""
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(20_000, 3, generator=rng).double()
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T
    other = base * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(base, other) == pytest.approx(9 + 1 + 0.25, abs=1e-6)
    assert frechet_distance(base, base) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_equals_torchmetrics() -> None:
    from torchmetrics.image import fid as metrics

    class Means(torch.nn.Module):
        """Channel means of quarters: 12 features of a picture."""

        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)

    rng = torch.Generator().manual_seed(0)
    real, drawn = (torch.randint(0, 255, (60, 8, 8, 3), generator=rng, dtype=torch.uint8) for _ in range(2))
    drawn = drawn // 2
    fid = metrics.FrechetInceptionDistance(feature=Means(), input_img_size=(3, 8, 8), normalize=True)
    for pictures, is_real in ((real, True), (drawn, False)):
        fid.update(pictures.permute(0, 3, 1, 2).float() / 255, real=is_real)
    ours = frechet_distance(extract(Means(), real), extract(Means(), drawn))
    theirs = float(fid.compute())
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_similarity_of_pairs() -> None:
    a = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert paired_similarity(a, a) == pytest.approx(100)
    assert paired_similarity(a, -a) == pytest.approx(-100)
    with pytest.raises(ValueError, match="no pairs"):
        paired_similarity(a, a[:3])
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a[:1], a)
