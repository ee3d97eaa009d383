"""Mistakes that a re-implementation can make, made on purpose: each must move z beyond the goldens'
tolerance.

Some of them change no code, so that a test of codes alone would pass. Two look like mistakes and are none: a
bias on the keys cancels in the softmax, and a mask of -10000 equals -inf in fp32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tokenizer.attention as attention
import tokenizer.vit as vit
from tests.tokenizer.conftest import Golden
from tests.tokenizer.test_goldens import Z_TOLERANCE
from tokenizer.config import SeedTokenizerConfig
from tokenizer.seed import SeedModel


@torch.inference_mode()
def z_error(model: SeedModel, golden: Golden) -> float:
    """Largest difference of the vectors before quantisation to the golden ones."""
    expected = golden["encode_task_out"]
    z = model.encode_features(torch.as_tensor(golden.images[: len(expected)]))
    return float(np.abs(z.numpy() - expected).max())


@pytest.mark.parametrize(
    "wrong",
    [
        {"vit_ln_eps": 1e-5},
        {"ln_vision_eps": 1e-6},
        {"bert_ln_eps": 1e-5},
        {"bert_ln_eps": 1e-6},
        {"causal": False},
        {"vit_heads": 8},
        {"bert_heads": 8},
    ],
    ids=str,
)
def test_wrong_configuration_moves_z(tiny: Golden, wrong: dict[str, object]) -> None:
    config = SeedTokenizerConfig.from_json(tiny.directory / "config.json")
    model = tiny.model(config=dataclasses.replace(config, **wrong))
    assert z_error(model, tiny) > 3 * Z_TOLERANCE


def swap(*names: str) -> Callable[[SeedModel], None]:
    """Exchange two of q, k, v in the fused projections of the image encoder."""
    order = {"q": 0, "k": 1, "v": 2}

    def mutate(model: SeedModel) -> None:
        a, b = (order[name] for name in names)
        for block in model.vit.blocks:
            for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
                parts = list(tensor.data.chunk(3))
                parts[a], parts[b] = parts[b], parts[a]
                tensor.data = torch.cat(parts)

    return mutate


def move_value_bias_to_keys(model: SeedModel) -> None:
    for block in model.vit.blocks:
        query, key, value = block.attn.qkv.bias.data.chunk(3)
        block.attn.qkv.bias.data = torch.cat([query, value, key])


def swap_cross_keys_and_values(model: SeedModel) -> None:
    for tensor in (model.qformer.cross_kv.weight, model.qformer.cross_kv.bias):
        key, value, *others = tensor.data.chunk(2 * len(model.config.cross_layers))
        tensor.data = torch.cat([value, key, *others])


def class_token_last(model: SeedModel) -> None:
    model.vit.pos_embed.data = model.vit.pos_embed.data.roll(-1, dims=1)


def drop_ln_vision(model: SeedModel) -> None:
    model.ln_vision = nn.Identity()


def drop_embedding_norm(model: SeedModel) -> None:
    model.qformer.embed_norm = nn.Identity()


@pytest.mark.parametrize(
    "mutate",
    [
        swap("q", "k"),
        swap("k", "v"),
        move_value_bias_to_keys,
        swap_cross_keys_and_values,
        class_token_last,
        drop_ln_vision,
        drop_embedding_norm,
    ],
    ids=lambda mutate: mutate.__qualname__,
)
def test_wrong_layout_moves_z(tiny: Golden, mutate: Callable[[SeedModel], None]) -> None:
    model = tiny.model()
    mutate(model)
    assert z_error(model, tiny) > 3 * Z_TOLERANCE


def test_tanh_gelu_moves_z(tiny: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "gelu", lambda x: F.gelu(x, approximate="tanh"))
    assert z_error(tiny.model(), tiny) > 3 * Z_TOLERANCE


def test_wrong_attention_scale_moves_z(tiny: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = F.scaled_dot_product_attention

    def unscaled(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, **options: Any) -> Tensor:
        return attend(q, k, v, is_causal=is_causal, scale=1.0, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", unscaled)
    assert z_error(tiny.model(), tiny) > 3 * Z_TOLERANCE


@pytest.mark.parametrize("statistics", ["PIXEL_MEAN", "PIXEL_STD"])
def test_blue_before_red_moves_z(tiny: Golden, monkeypatch: pytest.MonkeyPatch, statistics: str) -> None:
    monkeypatch.setattr(vit, statistics, getattr(vit, statistics)[::-1])
    assert z_error(tiny.model(), tiny) > 3 * Z_TOLERANCE


def test_wrong_decoder_epsilon_moves_the_generation_embedding(tiny: Golden) -> None:
    config = SeedTokenizerConfig.from_json(tiny.directory / "config.json")
    model = tiny.model(config=dataclasses.replace(config, block_ln_eps=1e-5))
    embedding = model.generation_embedding(torch.as_tensor(tiny["codes"]))
    assert np.abs(embedding.numpy() - tiny["generation_embedding"]).max() > 3e-5


def test_a_key_bias_is_harmless(tiny: Golden) -> None:
    model = tiny.model()
    for block in model.vit.blocks:
        block.attn.qkv.bias.data.chunk(3)[1].fill_(0.1)
    assert z_error(model, tiny) < Z_TOLERANCE


def test_a_mask_of_minus_10000_is_harmless(tiny: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = F.scaled_dot_product_attention

    def additive(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, **_: Any) -> Tensor:
        mask = q.new_full((q.shape[2], k.shape[2]), -10_000.0).triu(1) if is_causal else None
        return attend(q, k, v, attn_mask=mask)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", additive)
    assert z_error(tiny.model(), tiny) < Z_TOLERANCE
