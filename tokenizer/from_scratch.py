"""Random initial weights, where no trained ones are at hand (small tokenizers, heads of stage 2)."""

import torch
from torch import nn

from tokenizer.vit import PatchEmbedding

GAIN = 0.55
"""Standard deviation of a weight is this over sqrt(fan in): BERT's 0.02 at BERT's width."""
TABLE_STD = 0.02


@torch.no_grad()
def init_from_scratch(module: nn.Module, rng: torch.Generator) -> None:
    """Draw every parameter under ``module`` in place: weights by fan in, tables 0.02, norms 1, biases 0."""
    norms = {id(p) for m in module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    weights = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear | PatchEmbedding)}
    for name, parameter in module.named_parameters():
        if id(parameter) in norms or name.endswith("bias"):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif id(parameter) in weights:
            parameter.normal_(std=GAIN / parameter[0].numel() ** 0.5, generator=rng)
        elif parameter.ndim >= 2:
            parameter.normal_(std=TABLE_STD, generator=rng)
    for child in module.modules():
        if isinstance(child, nn.Embedding) and child.padding_idx is not None:
            child.weight[child.padding_idx] = 0
