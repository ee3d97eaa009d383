"""Deterministic full-size weights, so that the golden results of 1.1 billion numbers need no file.

Every official tensor has a generator of its own, seeded by its name. Scales keep 39 + 12 random layers from
collapsing the tokens and keep residual branches small, which makes wrong LayerNorm epsilons visible in z.
``torch.randn`` is bit-stable for one vector level of the CPU; at another, values differ by one ulp, far below
the margins.

    python -m tests.tokenizer.full_recipe DIR    # as a tokenizer that benchmarks can load
"""

import argparse
import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.checkpoint import expected_shapes, model_from_tensors, save_model
from tokenizer.config import SeedTokenizerConfig
from tokenizer.official_names import official_layout
from tokenizer.seed import SeedModel

SALTS = {"quantize.embedding.weight": "#756"}
"""Chosen, among 1000, for the largest smallest margin between the two nearest codes of a golden vector."""
TABLES = ("query_tokens", "reverse_tokens", "pos_embed", "pos_embed_image", "visual_encoder.cls_token")
NORMS = ("norm1", "norm2", "LayerNorm", "ln_vision")


def drawn_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """fp32 tensor of an official name."""
    seed = int(hashlib.sha256((name + SALTS.get(name, "")).encode()).hexdigest()[:8], 16)
    std, offset = std_and_offset(name, shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(std).add_(offset)


def std_and_offset(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of a tensor."""
    owner, _, kind = name.rpartition(".")
    owner = owner.rpartition(".")[2]
    unit = 1 / math.sqrt(math.prod(shape[1:]))
    if name in TABLES:
        return 0.02, 0.0
    if owner in NORMS:
        return 0.1, 1.0 if kind == "weight" else 0.0
    fixed = {
        "quantize.embedding.weight": 0.4,
        "visual_encoder.pos_embed": 0.05,
        "decode_task_layer.2.bias": 0.005,
        "distill_image_proj.bias": 0.005,
        "decode_task_layer.2.weight": 0.05 * unit,
        "decode_task_layer.0.weight": 1.5 * unit,
        "visual_encoder.patch_embed.proj.weight": 0.1 * unit,
    }
    if name in fixed:
        return fixed[name], 0.0
    if name.startswith(("visual_encoder.", "blocks.", "blocks_image.")):
        return _block_std(owner, kind, unit, is_vit=name.startswith("visual_encoder.")), 0.0
    if len(shape) == 1:
        return 0.1, 0.0
    return unit * _gain(name, owner), 0.0


def _block_std(owner: str, kind: str, unit: float, is_vit: bool) -> float:
    if owner in ("proj", "fc2"):
        return 0.002 if kind == "bias" else (0.02 if is_vit else 0.05) * unit
    if kind == "weight":
        return {"qkv": 1.5, "fc1": 1.0}[owner] * unit
    return 0.1


def _gain(name: str, owner: str) -> float:
    if ".crossattention." in name:
        return {"query": 3.0, "key": 3.0, "value": 1.0, "dense": 0.6}[owner]
    if ".attention.self." in name:
        return 1.0 if owner == "value" else 2.0
    if ".attention.output.dense" in name:
        return 0.2
    if ".output_query.dense" in name:
        return 0.3
    return 1.4 if name.startswith("image_down.") else 1.0


def full_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every official tensor of SEED-2."""
    with torch.device("meta"):
        return expected_shapes(SeedModel(SeedTokenizerConfig()), official_layout(SeedTokenizerConfig()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tokenizer of the recipe: 4.4 GB.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    tensors = {name: drawn_tensor(name, shape) for name, shape in full_shapes().items()}
    save_model(model_from_tensors(tensors, SeedTokenizerConfig(), "recipe"), directory)


if __name__ == "__main__":
    main()
