"""How near drawn pictures come to real ones: similarity in CLIP's space (the paper's measure) and Frechet
distance.

CLIP similarity is 100 times the cosine of two embeddings: picture to picture (i2i) or picture to caption
(i2t), as the paper follows GILL. FID is the Frechet distance of Inception features: give it those of your
extractor and say which.

Dimensions: I pictures, F width of the features.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.vit import PIXEL_MEAN, PIXEL_STD

BATCH = 64


class ClipSimilarity:
    """Embeddings of a whole CLIP model from a local path or hub id."""

    def __init__(self, source: str | Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.model = CLIPModel.from_pretrained(source).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.device = device

    @torch.inference_mode()
    def images(self, pictures_I: Tensor) -> Tensor:
        """(I, H, W, 3) uint8 RGB -> (I, F) normalised, squashed to the model's size with antialiasing."""
        size = self.model.config.vision_config.image_size
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        features = []
        for part in pictures_I.split(BATCH):
            pixels = part.permute(0, 3, 1, 2).float() / 255
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            vision = self.model.vision_model(pixel_values=((pixels - mean) / std).to(self.device))
            features.append(self.model.visual_projection(vision.pooler_output).cpu())
        return F.normalize(torch.cat(features), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """(I, F) normalised embeddings of captions."""
        inputs = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(
            self.device
        )
        text = self.model.text_model(**inputs)
        return F.normalize(self.model.text_projection(text.pooler_output).cpu(), dim=-1)


def paired_similarity(first_IF: Tensor, second_IF: Tensor) -> float:
    """100 times the mean cosine of the pairs of normalised features in the same order."""
    if first_IF.shape != second_IF.shape:
        raise ValueError(f"features of {tuple(first_IF.shape)} and {tuple(second_IF.shape)} are no pairs")
    return 100 * (first_IF.double() * second_IF.double()).sum(dim=1).mean().item()


def frechet_distance(real_IF: Tensor, drawn_IF: Tensor) -> float:
    """Frechet distance of two sets of features as Gaussians, in float64 with unbiased covariances.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)). With fewer pictures than dimensions the covariances
    are singular and the figure says little; FID customarily takes 2,048 dimensions and 5,000 pictures or
    more.

    Raises:
        ValueError: fewer than two pictures on a side.
    """
    if min(len(real_IF), len(drawn_IF)) < 2:
        raise ValueError("a Frechet distance needs at least two pictures on either side")
    real, drawn = real_IF.double(), drawn_IF.double()
    difference = real.mean(dim=0) - drawn.mean(dim=0)
    cov_real, cov_drawn = torch.cov(real.T), torch.cov(drawn.T)
    eigenvalues = torch.linalg.eigvals(cov_real @ cov_drawn).real.clamp(min=0)
    trace = cov_real.trace() + cov_drawn.trace() - 2 * eigenvalues.sqrt().sum()
    return float(difference.square().sum() + trace)


@torch.inference_mode()
def extract(network: nn.Module, pictures_I: Tensor) -> Tensor:
    """Features (I, F) of a network that takes (B, 3, H, W) fp32 in 0..1."""
    parts = [network(part.permute(0, 3, 1, 2).float() / 255).cpu() for part in pictures_I.split(BATCH)]
    return torch.cat(parts)


def fid_network(path: str | Path) -> nn.Module:
    """The feature network of FID from a TorchScript file: (B, 3, H, W) fp32 in 0..1 -> (B, F).

    NVIDIA's ``inception-2015-12-05.pt``, which clean-fid uses, too, takes 0..255 and ``return_features``;
    it resizes to 299x299 itself, as TensorFlow's graph of 2015 does. Any other TorchScript module is called
    with pictures in 0..1.

    Raises:
        FileNotFoundError, ValueError: no file, or no TorchScript.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no file of features; give a TorchScript Inception (docs/seed.md)")
    try:
        script = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path}: no TorchScript module ({str(error).splitlines()[0]})") from error
    takes_features = any(argument.name == "return_features" for argument in script.forward.schema.arguments)
    return _ReturnsFeatures(script) if takes_features else script


class _ReturnsFeatures(nn.Module):
    """NVIDIA's convention behind ours."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self._script = script

    def forward(self, pictures_B: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, F)."""
        features: Tensor = self._script(pictures_B * 255, return_features=True)
        return features
