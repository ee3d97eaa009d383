"""Tensor names of the published checkpoints, and how ours are put together from them.

Ours fuse what is multiplied together: q, k, v of every self-attention, and keys and values of all
cross-attentions of a Q-Former. ``official_layout`` is the whole mapping; it works in both directions, and on
gradients as on weights.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tokenizer.config import SeedTokenizerConfig

Layout = dict[str, tuple[str | None, ...]]
"""Our name -> official names of its equal parts along dimension 0; None is a zero part that is not stored."""

Entries = Iterator[tuple[str, tuple[str | None, ...]]]
POSITION_IDS = "bert.embeddings.position_ids"
"""An unused integer buffer that some checkpoints hold and others do not."""
_NORM_AND_MLP = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj")


def official_layout(config: SeedTokenizerConfig) -> Layout:
    """The mapping for every parameter of a ``SeedModel`` of this configuration."""
    layout: Layout = {"codebook.weight": ("quantize.embedding.weight",)}
    layout.update(_vit(config))
    layout.update(_affine("ln_vision", "ln_vision"))
    layout.update(_qformer("qformer", "Qformer", "query_tokens", config.bert_layers, config.cross_layers))
    for index in (0, 2):
        layout.update(_affine(f"encode_task_layer.{index}", f"encode_task_layer.{index}"))
        layout.update(_affine(f"decode_task_layer.{index}", f"decode_task_layer.{index}"))
    layout.update(_decoder("reconstruction_head", "pos_embed", "blocks", config.decode_depth))
    layout.update(_decoder("generation_head.decoder", "pos_embed_image", "blocks_image", config.decode_depth))
    if config.use_qformer_image:
        names = "generation_head.reverse_qformer", "Reverse_Qformer", "reverse_tokens"
        layout.update(_qformer(*names, config.reverse_layers, config.reverse_cross_layers))
    else:
        for index in range(3):
            name = f"generation_head.image_down.layers.{index}.weight"
            layout[name] = (f"image_down.{2 * index}.weight",)
    layout.update(_affine("generation_head.distill_image_proj", "distill_image_proj"))
    return layout


def fuse(official: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors from official ones; a tensor that is not fused is passed on without a copy."""
    return {
        ours: _join([official[part] if part else None for part in parts]) for ours, parts in layout.items()
    }


def split(ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Official tensors (views) from ours; inverse of ``fuse``.

    Raises:
        ValueError: a part that has no official name is not zero (a trained key bias of the image encoder).
    """
    official: dict[str, Tensor] = {}
    for name, parts in layout.items():
        for part, tensor in zip(parts, ours[name].chunk(len(parts)), strict=True):
            if part is not None:
                official[part] = tensor
            elif tensor.count_nonzero():
                raise ValueError(
                    f"{name}: the key bias is not zero and has no place in an official checkpoint"
                )
    return official


def position_ids(config: SeedTokenizerConfig) -> dict[str, Tensor]:
    """The unused buffers that complete an official checkpoint, by official name."""
    owners = ("Qformer", "Reverse_Qformer") if config.use_qformer_image else ("Qformer",)
    return {f"{owner}.{POSITION_IDS}": torch.arange(config.bert_max_position)[None] for owner in owners}


def _join(parts: list[Tensor | None]) -> Tensor:
    if len(parts) == 1:
        assert parts[0] is not None
        return parts[0]
    some = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(some) if part is None else part for part in parts])


def _affine(ours: str, official: str) -> Entries:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", (f"{official}.{kind}",)


def _vit(config: SeedTokenizerConfig) -> Entries:
    for name in ("cls_token", "pos_embed"):
        yield f"vit.{name}", (f"visual_encoder.{name}",)
    yield from _affine("vit.patch_embed", "visual_encoder.patch_embed.proj")
    for index in range(config.vit_depth):
        ours, official = f"vit.blocks.{index}", f"visual_encoder.blocks.{index}"
        for part in _NORM_AND_MLP:
            yield from _affine(f"{ours}.{part}", f"{official}.{part}")
        yield f"{ours}.attn.qkv.weight", (f"{official}.attn.qkv.weight",)
        yield f"{ours}.attn.qkv.bias", (f"{official}.attn.q_bias", None, f"{official}.attn.v_bias")


def _decoder(ours: str, table: str, blocks: str, depth: int) -> Entries:
    yield f"{ours}.pos_embed", (table,)
    for index in range(depth):
        for part in (*_NORM_AND_MLP, "attn.qkv"):
            yield from _affine(f"{ours}.blocks.{index}.{part}", f"{blocks}.{index}.{part}")


def _qformer(
    ours: str, official: str, tokens: str, num_layers: int, cross_layers: tuple[int, ...]
) -> Entries:
    bert = f"{official}.bert"
    yield f"{ours}.queries", (tokens,)
    yield from _affine(f"{ours}.embed_norm", f"{bert}.embeddings.LayerNorm")
    for kind in ("weight", "bias"):
        yield (
            f"{ours}.cross_kv.{kind}",
            tuple(
                f"{bert}.encoder.layer.{index}.crossattention.self.{part}.{kind}"
                for index in cross_layers
                for part in ("key", "value")
            ),
        )
    for index in range(num_layers):
        yield from _qformer_layer(
            f"{ours}.layers.{index}", f"{bert}.encoder.layer.{index}", index in cross_layers
        )


def _qformer_layer(ours: str, official: str, has_cross: bool) -> Entries:
    for kind in ("weight", "bias"):
        parts = tuple(f"{official}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
        yield f"{ours}.attention.qkv.{kind}", parts
    yield from _affine(f"{ours}.attention.proj", f"{official}.attention.output.dense")
    yield from _affine(f"{ours}.attention_norm", f"{official}.attention.output.LayerNorm")
    if has_cross:
        yield from _affine(f"{ours}.cross.query", f"{official}.crossattention.self.query")
        yield from _affine(f"{ours}.cross.proj", f"{official}.crossattention.output.dense")
        yield from _affine(f"{ours}.cross_norm", f"{official}.crossattention.output.LayerNorm")
    yield from _affine(f"{ours}.mlp.fc1", f"{official}.intermediate_query.dense")
    yield from _affine(f"{ours}.mlp.fc2", f"{official}.output_query.dense")
    yield from _affine(f"{ours}.mlp_norm", f"{official}.output_query.LayerNorm")
