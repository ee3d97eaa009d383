"""What the codes of a tokenizer are worth without any language model: use of the codebook, and stability.

Dimensions: I pictures, N codes per picture.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenizer.augment import AugmentConfig, augment, draw_views
from tokenizer.code_usage import usage_figures
from tokenizer.seed import SeedModel

BATCH = 64


@torch.inference_mode()
def encode_all(model: SeedModel, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """(I, img_size, img_size, 3) uint8 -> (I, N) int64 codes on the CPU."""
    device = model.codebook.weight.device
    parts = torch.as_tensor(images).split(BATCH)
    return torch.cat([model.encode(part.to(device)).cpu() for part in parts])


def agreement(codes_IN: Tensor, others_IN: Tensor) -> float:
    """Percent of places at which two (I, N) sets of codes are equal."""
    return 100 * (codes_IN == others_IN).double().mean().item()


def random_pair_agreement(codes_IN: Tensor) -> float:
    """Percent of equal places over all pairs of different pictures: what agreement means nothing."""
    num = len(codes_IN)
    equal = sum(float((codes_IN[i] == codes_IN[i + 1 :]).double().sum()) for i in range(num - 1))
    return 100 * equal / max(1, codes_IN.shape[1] * num * (num - 1) // 2)


def code_figures(
    model: SeedModel, images: npt.NDArray[np.uint8], augmentation: AugmentConfig, seed: int
) -> dict[str, float]:
    """Use of the codebook on these pictures, and agreement of their codes with those of views of them.

    ``crop`` is a view as in training, ``light crop`` keeps at least 90 % of the area and does not turn.
    """
    codes_IN = encode_all(model, images)
    figures = dict(_agreements(model, images, codes_IN, augmentation, seed))
    usage = usage_figures(torch.bincount(codes_IN.flatten(), minlength=model.config.n_embed))
    return figures | {
        "agreement random pairs %": random_pair_agreement(codes_IN),
        "codes used": usage.used,
        "perplexity": usage.perplexity,
        "distinct rows %": 100 * len(torch.unique(codes_IN, dim=0)) / len(codes_IN),
        "different codes a picture": sum(len(row.unique()) for row in codes_IN) / len(codes_IN),
    }


def _agreements(
    model: SeedModel, images: npt.NDArray[np.uint8], codes_IN: Tensor, augmentation: AugmentConfig, seed: int
) -> Iterator[tuple[str, float]]:
    none = torch.zeros(len(images), dtype=torch.bool)
    light = dataclasses.replace(
        augmentation, min_area=0.9, max_turn_degrees=0.0, max_log_aspect=0.05, max_gain=0.05
    )
    mirror = AugmentConfig(min_area=1.0, mirror=1.0)
    for name, config, mirrored in (
        ("crop", augmentation, none),
        ("light crop", light, none),
        ("mirror", mirror, ~none),
    ):
        rng = torch.Generator().manual_seed(seed)
        views = [
            augment(part, allowed, config, draw_views(len(part), rng))
            for part, allowed in zip(torch.as_tensor(images).split(BATCH), mirrored.split(BATCH), strict=True)
        ]
        yield f"agreement {name} %", agreement(codes_IN, encode_all(model, torch.cat(views)))
