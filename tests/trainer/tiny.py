"""A model and packed rows small enough for one core."""

import torch
from torch import Tensor

from schemas.vocabulary import VocabularyLayout
from trainer.llama import Llama, LlamaConfig
from trainer.weights import fill_parameters, random_weights

LAYOUT = VocabularyLayout(base_size=300)
CONFIG = LlamaConfig(
    vocab_size=LAYOUT.padded_size,
    width=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    mlp_width=64,
    max_length=128,
)


def tiny_model(config: LlamaConfig = CONFIG, seed: int = 0) -> Llama:
    model = Llama(config)
    fill_parameters(model, random_weights(config, seed))
    return model


def bounds(lengths: list[int]) -> Tensor:
    """(1, N + 1) int32 document bounds of one row."""
    return torch.tensor([[0, *torch.tensor(lengths).cumsum(0).tolist()]], dtype=torch.int32)


def positions(lengths: list[int]) -> Tensor:
    """(1, T) positions of one row."""
    return torch.cat([torch.arange(length) for length in lengths])[None]
