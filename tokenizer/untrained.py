"""A whole tokenizer with drawn weights: a stand-in where none is trained yet.

Training draws its first weights differently (`from_scratch`).
Its codes say which pictures are alike to a random network, nothing more. They do differ from picture to
picture: the codebook consists of vectors that the network itself makes of drawn pictures.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import SeedTokenizerConfig
from tokenizer.seed import SeedModel

DESCRIPTION = "UNTRAINED: drawn weights, for tests and demonstrations; its codes carry no meaning"
SMALL_CONFIG = SeedTokenizerConfig(
    vit_width=48,
    vit_depth=1,
    vit_heads=3,
    vit_mlp_hidden=96,
    bert_hidden=48,
    bert_layers=2,
    bert_heads=3,
    bert_intermediate=96,
    decode_depth=1,
    block_mlp_ratio=2.0,
    image_features_dim=64,
    description=DESCRIPTION,
)
"""Smaller than the sample tokenizer, but with the release's 257 image tokens and 8192 codes of 32 numbers."""
_PICTURES_PER_BATCH = 32
CROSS_ATTENTION_GAIN = 4.0


def untrained_model(config: SeedTokenizerConfig, seed: int) -> SeedModel:
    """A network whose weights are a function of the configuration and the seed (and of torch's generator).

    Linear layers keep the variance of what they read, norms are neutral, tokens and positions are standard
    normal; codebook entries are the network's own vectors for drawn pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    model = SeedModel(dataclasses.replace(config, description=DESCRIPTION)).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        _draw(model, name, parameter, generator)
    num_pictures = math.ceil(config.n_embed / config.num_query_token)
    z = [
        model.encode_features(drawn_pictures(_PICTURES_PER_BATCH, config.img_size, generator))
        for _ in range(0, num_pictures, _PICTURES_PER_BATCH)
    ]
    vectors = torch.cat(z).flatten(0, 1)
    model.codebook.weight.copy_(vectors[torch.randperm(len(vectors), generator=generator)[: config.n_embed]])
    return model.requires_grad_(True)


def drawn_pictures(num_pictures: int, size: int, generator: torch.Generator) -> Tensor:
    """(num_pictures, size, size, 3) uint8: colour noise at several scales, mixed anew for each picture."""
    canvas = torch.zeros(num_pictures, 3, size, size)
    for cells in (1, 3, 8, 24, size):
        noise = torch.randn(num_pictures, 3, cells, cells, generator=generator)
        amount = torch.rand(num_pictures, 1, 1, 1, generator=generator) * (0.3 if cells == size else 1.0)
        canvas += amount * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return (canvas * 64 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _draw(model: SeedModel, name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.LayerNorm):
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if name.endswith("weight"):
            parameter.mul_(_gain(name) / math.sqrt(parameter[0].numel()))


def _gain(name: str) -> float:
    """What a picture shows must outweigh which query asks, or every query would have codes of its own."""
    return CROSS_ATTENTION_GAIN if ".cross" in name else 1.0
