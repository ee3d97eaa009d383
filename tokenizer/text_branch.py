"""The text side of stage 1: captions through the self-attention of the Q-Former, with feed-forward layers of
their own.

BLIP-2 has one BERT for both: self-attention layers and the LayerNorm of the embeddings are shared with the
queries, word and position tables and the feed-forward layers are the text's. Only training needs it.

Dimensions: B captions, T text tokens (padded), D width.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from tokenizer.attention import Mlp
from tokenizer.causal_qformer import CausalQFormer, QFormerLayer
from tokenizer.config import SeedTokenizerConfig

PAD_ID = 0
"""BERT's [PAD]: its row of the word table never moves."""


class TextLayer(nn.Module):
    """What one Q-Former layer has for text only: MLP and its LayerNorm."""

    def __init__(self, width: int, mlp_hidden: int, eps: float) -> None:
        super().__init__()
        self.mlp = Mlp(width, mlp_hidden)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, shared: QFormerLayer, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, D) fp32 -> the same; self-attention and its LayerNorm are those of ``shared``."""
        attended = shared.attention(x_BTD, mask_BT=mask_BT)
        x_BTD = shared.attention_norm(x_BTD + shared.dropout(attended))
        out: Tensor = self.mlp_norm(x_BTD + shared.dropout(self.mlp(x_BTD)))
        return out


class TextBranch(nn.Module):
    """Word and position tables and the text layers; runs through the layers of a Q-Former that it does not
    own."""

    def __init__(self, config: SeedTokenizerConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.bert_hidden
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=PAD_ID)
        self.position_embeddings = nn.Embedding(config.bert_max_position, width)
        self.layers = nn.ModuleList(
            TextLayer(width, config.bert_intermediate, config.bert_ln_eps) for _ in range(config.bert_layers)
        )

    def forward(self, qformer: CausalQFormer, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Captions to features; every token sees the whole caption.

        Args:
            qformer: whose layers are shared.
            ids_BT: (B, T) int64 word ids, [CLS] first.
            mask_BT: (B, T) bool, False at padding.

        Returns:
            (B, T, D) fp32; position 0 stands for the caption.
        """
        positions = self.position_embeddings.weight[: ids_BT.shape[1]]
        x_BTD: Tensor = qformer.dropout(qformer.embed_norm(self.word_embeddings(ids_BT) + positions))
        for shared, layer in zip(qformer.layers, self.layers, strict=True):
            x_BTD = layer(shared, x_BTD, mask_BT)
        return x_BTD


def text_layout(config: SeedTokenizerConfig, prefix: str) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Our parameter names under ``prefix`` with the official ones (``official_names.Layout`` entries)."""
    bert = "Qformer.bert"
    for table in ("word_embeddings", "position_embeddings"):
        yield f"{prefix}.{table}.weight", (f"{bert}.embeddings.{table}.weight",)
    pairs = (("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"), ("mlp_norm", "output.LayerNorm"))
    for index in range(config.bert_layers):
        for ours, official in pairs:
            for kind in ("weight", "bias"):
                yield (
                    f"{prefix}.layers.{index}.{ours}.{kind}",
                    (f"{bert}.encoder.layer.{index}.{official}.{kind}",),
                )
