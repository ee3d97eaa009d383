"""Frechet distance against torchmetrics and a closed form; CLIP similarity with a small random CLIP."""

from pathlib import Path

import pytest
import torch
import transformers

from trainer.evaluation.drawing import picture_tables
from trainer.evaluation.pictures import ClipSimilarity, extract, frechet_distance, paired_similarity

SAMPLE = Path(__file__).parents[3] / "samples" / "text_tokenizer"


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


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer a side with drawn weights, over the sample text tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.save_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    text = {**sizes, "vocab_size": 2048, "max_position_embeddings": 32, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_embeddings_are_those_of_transformers(clip_folder: Path) -> None:
    """Its own image processor at the model's size, and its own forward pass, give the same embeddings."""
    clip = ClipSimilarity(clip_folder)
    pictures = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    captions = ["a dog", "a red bicycle in the rain", "no"]
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = processor(list(pictures.numpy()), return_tensors="pt")["pixel_values"]
    inputs = clip.tokenizer(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=pixels
        )
    assert torch.allclose(clip.images(pictures), expected.image_embeds, atol=1e-5)
    assert torch.allclose(clip.texts(captions), expected.text_embeds, atol=1e-5)
    cosines = (expected.image_embeds * expected.text_embeds).sum(dim=1)
    table = picture_tables(pictures, pictures, captions, clip, "")["pictures drawn from 3 captions"]
    assert table["CLIP similarity i2t"] == pytest.approx(100 * cosines.mean().item(), abs=1e-3)
    assert table["CLIP similarity i2i"] == pytest.approx(100, abs=1e-3)
    assert table["CLIP similarity i2i of shuffled pairs"] < 100
