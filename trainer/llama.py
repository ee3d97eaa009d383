"""LLaMA 1, 2 and 3 over packed documents, as plain modules that run on one CPU.

Parameter names are Hugging Face's below ``model.`` (``layers.0.self_attn.q_proj.weight``), so that
checkpoints and adapters travel without renaming. Parallelism lives in ``parallelize.py``; nothing here
knows of it, except that head counts are read from the tensors, which tensor parallelism narrows.

Dimensions: B sequences, T ids of a sequence, D width, H query heads, G key/value heads, K head width, V
    vocabulary, N documents of a sequence (the longest row decides; shorter rows are filled with empty
    documents).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.vocabulary import VocabularyLayout
from trainer.attention import attention
from trainer.dropout import layer_keys
from trainer.loss import cross_entropy_by_id


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Stretched rotary positions: ``linear`` (position interpolation) or ``llama3`` (by frequency band)."""

    kind: str = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    """Ids of context that the unscaled model was trained with."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"model.rope_scaling.kind must be 'linear' or 'llama3', got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of a LLaMA. The defaults are LLaMA-2-7B's, with the text vocabulary only."""

    vocab_size: int = 32_000
    """Rows of the embedding table, padding included."""
    num_ids: int = 0
    """Ids in use, the first rows; padding behind them is outside of every softmax. 0: all rows are."""
    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_width: int = 128
    mlp_width: int = 11_008
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_length: int = 4096
    """Ids of context that the model is meant for; written to exports, no limit of the arithmetic."""
    is_tied: bool = False
    """The output head is the embedding table."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}"
            )
        if self.head_width % 2:
            raise ValueError(f"model.head_width must be even for rotary positions, got {self.head_width}")

    def with_vocabulary(self, layout: VocabularyLayout) -> "LlamaConfig":
        """The same shape for another vocabulary, its table padded."""
        return replace(self, vocab_size=layout.padded_size, num_ids=layout.size)

    @property
    def num_projection_parameters(self) -> int:
        """Parameters in the matrices of the layers."""
        attention_width = self.head_width * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (2 * self.width * attention_width + 3 * self.width * self.mlp_width)


@dataclass
class KeyValueCache:
    """Keys and values of the ids read so far, one slot per position, for one generation.

    Each tensor is (B, slots, G, K). Slots past a row's own length hold rubbish, and are never seen: slot j is
    visible to a query at position p only when j <= p, and is overwritten when the row gets there.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, config: LlamaConfig, num_rows: int, num_slots: int, like: Tensor) -> "KeyValueCache":
        shape = (num_rows, num_slots, config.num_kv_heads, config.head_width)
        keys = [like.new_zeros(shape) for _ in range(config.num_layers)]
        return cls(keys, [torch.zeros_like(key) for key in keys])

    def attend(
        self, layer: int, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, positions_BT: Tensor
    ) -> Tensor:
        """Store keys and values at their positions, then attend to all slots up to each query's own."""
        rows = torch.arange(q_BTHK.shape[0], device=q_BTHK.device)[:, None]
        self.keys[layer][rows, positions_BT] = k_BTGK
        self.values[layer][rows, positions_BT] = v_BTGK
        num_slots = int(positions_BT.max()) + 1
        slots = torch.arange(num_slots, device=q_BTHK.device)
        is_visible = (slots <= positions_BT[..., None])[:, None]
        q, k, v = (
            x.transpose(1, 2)
            for x in (q_BTHK, self.keys[layer][:, :num_slots], self.values[layer][:, :num_slots])
        )
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=is_visible, enable_gqa=q.shape[1] != k.shape[1]
        )
        return output.transpose(1, 2)


@dataclass
class PackedContext:
    """What every layer needs beside the hidden states; made once per forward by ``make_context``."""

    cos_BTK: Tensor
    sin_BTK: Tensor
    positions_BT: Tensor
    cu_seqlens: Tensor | None
    """(B * N + 1,) int32 over the flattened batch; None when a cache holds the documents."""
    cache: KeyValueCache | None = None
    dropout_keys_B: Tensor | None = None
    """(B,) int64 that the dropout of adapters in a row is drawn from; None for none."""

    def of_layer(self, layer: int) -> "PackedContext":
        """With the dropout keys of one layer; made outside of layers, so that all compile to one."""
        if self.dropout_keys_B is None:
            return self
        return replace(self, dropout_keys_B=layer_keys(self.dropout_keys_B, layer))


def rope_frequencies(config: LlamaConfig, device: torch.device) -> Tensor:
    """Radians per position of each pair of channels: (K / 2,) fp32.

    ``llama3`` keeps the high frequencies, divides the low ones by the factor and blends in between
    (Llama 3.1; the bands are given in wavelengths of the original context).
    """
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_length * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def make_context(
    config: LlamaConfig,
    positions_BT: Tensor,
    cu_seqlens_BN: Tensor | None,
    dtype: torch.dtype,
    cache: KeyValueCache | None = None,
) -> PackedContext:
    """Rotary angles of each id and the document bounds of the flattened batch.

    Args:
        config: the model's.
        positions_BT: position of each id within its own document, integers.
        cu_seqlens_BN: (B, N + 1) int32, each row from 0 to T, its tail filled with T; None with a cache.
        dtype: of the hidden states; angles are computed in fp32 and rounded once.
        cache: keys and values of earlier ids (generation).
    """
    angles_BTK = positions_BT[..., None].float() * rope_frequencies(config, positions_BT.device)
    angles_BTK = torch.cat((angles_BTK, angles_BTK), dim=-1)
    flat = None
    if cu_seqlens_BN is not None:
        num_rows, length = positions_BT.shape
        starts = torch.arange(num_rows, device=cu_seqlens_BN.device, dtype=torch.int32)[:, None] * length
        flat = F.pad((cu_seqlens_BN[:, 1:] + starts).flatten(), (1, 0)).to(torch.int32)
    return PackedContext(angles_BTK.cos().to(dtype), angles_BTK.sin().to(dtype), positions_BT, flat, cache)


def rotate(x_BTHK: Tensor, context: PackedContext) -> Tensor:
    """Rotary positions in the half-split convention of the released Hugging Face checkpoints."""
    left, right = x_BTHK.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return x_BTHK * context.cos_BTK[:, :, None] + turned * context.sin_BTK[:, :, None]


def project(matrix: nn.Module, x_BTD: Tensor, context: PackedContext) -> Tensor:
    """Through a matrix of a layer; one with an adapter takes the dropout keys of the rows as well.

    An argument, since a compiled layer whose activations are computed again must not write to its modules.
    """
    keys_B = context.dropout_keys_B
    projected = matrix(x_BTD) if keys_B is None else matrix(x_BTD, keys_B)
    assert isinstance(projected, Tensor)
    return projected


class SelfAttention(nn.Module):
    """Grouped-query self-attention within documents."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_width = config.head_width
        self.q_proj = nn.Linear(config.width, config.num_heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, context: PackedContext) -> Tensor:
        num_rows, length, _ = x_BTD.shape
        shape = (num_rows, length, -1, self.head_width)
        q = rotate(project(self.q_proj, x_BTD, context).view(shape), context)
        k = rotate(project(self.k_proj, x_BTD, context).view(shape), context)
        v = project(self.v_proj, x_BTD, context).view(shape)
        if context.cache is not None:
            output = context.cache.attend(self.layer, q, k, v, context.positions_BT)
        else:
            assert context.cu_seqlens is not None
            output = attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), context.cu_seqlens, length)
        return project(self.o_proj, output.reshape(num_rows, length, -1), context)


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, context: PackedContext) -> Tensor:
        gate = F.silu(project(self.gate_proj, x_BTD, context))
        return project(self.down_proj, gate * project(self.up_proj, x_BTD, context), context)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = GatedMlp(config)

    def forward(self, x_BTD: Tensor, context: PackedContext) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context)
        x_BTD = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), context)
        return x_BTD


class LanguageHead(nn.Linear):
    """Logits, or, where labels are given, the loss of each id without ever holding all logits."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config.width, config.vocab_size, bias=False)
        self.num_ids = config.num_ids or config.vocab_size

    def forward(self, input: Tensor, labels_BT: Tensor | None = None) -> Tensor:
        if labels_BT is None:
            return F.linear(input, self.weight[: self.num_ids])
        return cross_entropy_by_id(input, self.weight, labels_BT, num_ids=self.num_ids)


class Llama(nn.Module):
    """The language model, or one pipeline stage of it (``layers`` a subset, ends present or None)."""

    def __init__(
        self,
        config: LlamaConfig,
        layers: range | None = None,
        has_embedding: bool = True,
        has_head: bool = True,
    ) -> None:
        """A stage holds ``layers`` (all when None); the first has the embedding, the last norm and head."""
        super().__init__()
        if config.is_tied and not (has_embedding and has_head):
            raise ValueError("tied embeddings cannot be split over stages; set parallel.pipeline to 1")
        self.config = config
        chosen = range(config.num_layers) if layers is None else layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width) if has_embedding else None
        self.layers = nn.ModuleDict({str(layer): Block(config, layer) for layer in chosen})
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps) if has_head else None
        self.lm_head = LanguageHead(config) if has_head else None
        self.tie()

    def tie(self) -> None:
        """Make the head share the embedding table where the configuration says so; needed after moves."""
        if self.config.is_tied:
            assert self.lm_head is not None
            assert self.embed_tokens is not None
            self.lm_head.weight = self.embed_tokens.weight

    def blocks(self) -> Iterator[Block]:
        """The transformer layers held here, in order."""
        yield from self.layers.values()  # type: ignore[misc]

    def forward(
        self,
        ids_or_hidden: Tensor,
        positions_BT: Tensor,
        cu_seqlens_BN: Tensor | None = None,
        labels_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        take_B: Tensor | None = None,
        dropout_keys_B: Tensor | None = None,
    ) -> Tensor:
        """One pass over packed sequences.

        Args:
            ids_or_hidden: (B, T) int64 ids where the embedding is held, else (B, T, D) hidden states.
            positions_BT: (B, T) position of each id in its document.
            cu_seqlens_BN: (B, N + 1) int32 document bounds of each row; needed without a cache.
            labels_BT: (B, T) int64, -100 where nothing is learned.
            cache: of a generation; ids then continue what it holds.
            take_B: (B,) place in each row of the only id whose logits are wanted (T is then 1).
            dropout_keys_B: (B,) int64 of ``dropout.row_keys``, while adapters train.

        Returns:
            (B, T, V) logits of the ids in use; with labels (B, T) fp32 losses, 0 where nothing is learned; a
            stage without a head returns (B, T, D).
        """
        x = self.embed_tokens(ids_or_hidden) if self.embed_tokens is not None else ids_or_hidden
        context = make_context(self.config, positions_BT, cu_seqlens_BN, x.dtype, cache)
        context.dropout_keys_B = dropout_keys_B
        for name, block in self.layers.items():
            x = block(x, context.of_layer(int(name)))
        if self.lm_head is None or self.norm is None:
            return x
        if take_B is not None:
            x = x[torch.arange(len(x), device=x.device), take_B][:, None]
        losses_or_logits: Tensor = self.lm_head(self.norm(x), labels_BT)
        return losses_or_logits
