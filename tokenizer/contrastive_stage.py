"""Training stage 1: the causal Q-Former by image-text contrast (the paper's section 3.1.1, BLIP-2's InfoNCE).

    image features (one a query): picture -> vit (frozen) -> ln_vision -> causal Q-Former -> vision_proj
        -> normalise
    text feature: caption -> text branch -> text_proj of [CLS] -> normalise
    loss: (CE(image -> text) + CE(text -> image)) / 2 over the captions and pictures of all ranks

The paper scores a picture by its *last* query: under causal attention that one has read all others. Reviewers
asked for BLIP-2's maximum over all queries; it is ``query: max``. Bilateral attention is ``causal: false`` of
the model.

What other ranks contribute carries no gradient, as in the published code; each rank's own side does. Averaged
over ranks (as DDP does) the gradient equals that of one process with the whole batch, where the gathered copy
of its own features is cut off from the graph as well.

Dimensions: B pairs of this rank, G pairs of all ranks, N queries, T text tokens, E joint width; in
similarities P pictures, T texts.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.attention import PreNormBlock, set_dropout
from tokenizer.causal_qformer import QFormerLayer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.official_names import Layout, official_layout
from tokenizer.seed import SeedModel
from tokenizer.text_branch import TextBranch, TextLayer, text_layout
from tokenizer.vit import VisionTransformer

QueryChoice = Literal["last", "max"]
ENCODER_PARTS = ("vit.", "ln_vision.", "qformer.")
"""Parameters of a ``SeedModel`` that stage 1 owns (by the start of their names)."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Settings of stage 1. Defaults are those of the release, except ``vocab_size``."""

    vocab_size: int = 0
    """Rows of the word table; 0: as many as the caption tokenizer has entries. BLIP-2's weights have 30,523:
    BERT's 30,522 and [DEC], which no caption holds."""
    embed_dim: int = 256
    """Width of the joint space."""
    query: QueryChoice = "last"
    """Which query scores a picture: the last (the paper) or the best of all (BLIP-2)."""
    all_queries: float = 0.0
    """Share of the loss that scores every query by itself, the n-th with a weight of n cubed; the rest scores
    the last. Not in the paper, whose queries could all tell captions apart before (BLIP-2's)."""
    label_smoothing: float = 0.1
    temperature: float = 0.07
    """Initial; logits are cosines divided by it."""
    learn_temperature: bool = True
    dropout: float = 0.1
    """In the Q-Former and its text branch, as in BERT."""
    train_vit: bool = False
    """The paper freezes BLIP-2's ViT. Where no trained one is at hand it has to be trained here."""

    def __post_init__(self) -> None:
        if self.query not in get_args(QueryChoice):
            raise ValueError(f"contrastive.query must be one of {get_args(QueryChoice)}, got {self.query!r}")
        for name in ("label_smoothing", "dropout", "all_queries"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"contrastive.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.all_queries and self.query != "last":
            raise ValueError("contrastive.all_queries goes with contrastive.query last")
        if self.temperature <= 0:
            raise ValueError(f"contrastive.temperature must be positive, got {self.temperature}")
        if self.vocab_size < 0 or self.embed_dim < 1:
            raise ValueError("contrastive.vocab_size must not be negative, contrastive.embed_dim positive")


@dataclass(frozen=True)
class Contrast:
    """One batch through stage 1."""

    loss: Tensor
    """fp32 scalar of this rank."""
    image_BNE: Tensor
    """Normalised features of all queries."""
    text_BE: Tensor
    logits_i2t_BG: Tensor
    logits_t2i_BG: Tensor
    targets_B: Tensor
    """Which of the G pairs is its own."""


class ContrastiveModel(nn.Module):
    """Image encoder and Q-Former of a tokenizer, the text branch, and two projections into the joint
    space."""

    def __init__(self, config: SeedTokenizerConfig, stage: ContrastiveConfig) -> None:
        super().__init__()
        if not stage.vocab_size:
            raise ValueError("contrastive.vocab_size: a model needs the number of rows of its word table")
        self.config = config
        self.stage = stage
        tokenizer = SeedModel(config)
        self.vit = tokenizer.vit
        self.ln_vision = tokenizer.ln_vision
        self.qformer = tokenizer.qformer
        self.text_branch = TextBranch(config, stage.vocab_size)
        self.vision_proj = nn.Linear(config.bert_hidden, stage.embed_dim)
        self.text_proj = nn.Linear(config.bert_hidden, stage.embed_dim)
        self.temp = nn.Parameter(torch.tensor(stage.temperature), requires_grad=stage.learn_temperature)
        self.vit.requires_grad_(stage.train_vit)
        if stage.train_vit:
            hold_key_biases(self.vit)
        for module in (self.qformer, self.text_branch):
            set_dropout(module, stage.dropout)

    def image_features(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, N, E) fp32, normalised, one per query."""
        return self.project(self.causal_embeddings(images_B))

    def causal_embeddings(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, N, D), what stage 2 quantises."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.train_vit):
            features = self.vit(images_B)
        queries_BND: Tensor = self.qformer(self.ln_vision(features))
        return queries_BND

    def project(self, queries_BND: Tensor) -> Tensor:
        """Causal embeddings in the joint space: (B, N, E) fp32, normalised."""
        return F.normalize(self.vision_proj(queries_BND).float(), dim=-1)

    def text_features(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T) word ids and bool mask -> (B, E) fp32, normalised."""
        tokens_BTD = self.text_branch(self.qformer, ids_BT, mask_BT)
        return F.normalize(self.text_proj(tokens_BTD[:, 0]).float(), dim=-1)

    def forward(self, images_B: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Contrast:
        """One batch of pairs (of this rank); all ranks must hold the same number."""
        return contrast(
            self.image_features(images_B), self.text_features(ids_BT, mask_BT), self.temp, self.stage
        )

    @torch.no_grad()
    def init_query_mlps_from_text(self) -> None:
        """Start the queries' feed-forward layers from BERT's, as the release does before BLIP-2's weights
        come."""
        for shared, text in zip(self.qformer.layers, self.text_branch.layers, strict=True):
            assert isinstance(shared, QFormerLayer)
            assert isinstance(text, TextLayer)
            shared.mlp.load_state_dict(text.mlp.state_dict())
            shared.mlp_norm.load_state_dict(text.mlp_norm.state_dict())


def hold_key_biases(vit: VisionTransformer) -> None:
    """Keep the key biases of a ViT at zero in training: EVA has none.

    They add the same to all scores of a query, so they change nothing and their gradient is rounding noise,
    which Adam would scale up to full steps.
    """

    def without_key(gradient: Tensor) -> Tensor:
        kept = gradient.clone()
        kept.chunk(3)[1].zero_()
        return kept

    for block in vit.blocks:
        assert isinstance(block, PreNormBlock)
        block.attn.qkv.bias.register_hook(without_key)


def contrast(image_BNE: Tensor, text_BE: Tensor, temp: Tensor, stage: ContrastiveConfig) -> Contrast:
    """InfoNCE of normalised features, both ways, against the pairs of all ranks."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    targets_B = torch.arange(len(text_BE), device=text_BE.device) + rank * len(text_BE)
    picture_BNE = image_BNE[:, -1:] if stage.query == "last" else image_BNE
    with torch.autocast(text_BE.device.type, enabled=False):
        i2t_BG = best_similarity(picture_BNE, gather(text_BE)) / temp
        t2i_BG = best_similarity(gather(picture_BNE), text_BE).T / temp
        loss = info_nce(i2t_BG, t2i_BG, targets_B, stage.label_smoothing)
        if stage.all_queries:
            loss = (1 - stage.all_queries) * loss + stage.all_queries * loss_of_all_queries(
                image_BNE, text_BE, temp, targets_B, stage.label_smoothing
            )
    return Contrast(loss, image_BNE, text_BE, i2t_BG, t2i_BG, targets_B)


def info_nce(i2t_BG: Tensor, t2i_BG: Tensor, targets_B: Tensor, label_smoothing: float) -> Tensor:
    """Mean of the cross entropies of both directions, fp32 scalar."""
    losses = [
        F.cross_entropy(logits, targets_B, label_smoothing=label_smoothing) for logits in (i2t_BG, t2i_BG)
    ]
    return (losses[0] + losses[1]) / 2


def loss_of_all_queries(
    image_BNE: Tensor, text_BE: Tensor, temp: Tensor, targets_B: Tensor, label_smoothing: float
) -> Tensor:
    """Mean loss of the queries, each scoring by itself, weighted by the cube of its index (from 1)."""
    text_GE, image_GNE = gather(text_BE), gather(image_BNE)
    num_queries = image_BNE.shape[1]
    weights = torch.arange(1, num_queries + 1, device=image_BNE.device) ** 3.0
    losses = [
        info_nce(
            image_BNE[:, query] @ text_GE.T / temp,
            text_BE @ image_GNE[:, query].T / temp,
            targets_B,
            label_smoothing,
        )
        for query in range(num_queries)
    ]
    return torch.stack(losses) @ (weights / weights.sum())


def best_similarity(picture_PNE: Tensor, text_TE: Tensor) -> Tensor:
    """(P, N, E) and (T, E) fp32 -> (P, T), each picture's best query for each text; differentiable."""
    if picture_PNE.shape[1] == 1:
        return picture_PNE[:, 0] @ text_TE.T
    best_PT: Tensor = BestSimilarity.apply(picture_PNE, text_TE)  # type: ignore[no-untyped-call]
    return best_PT


class BestSimilarity(torch.autograd.Function):
    """The maximum over queries, one query at a time: (P, N, T) similarities never exist at once.

    What is kept for the backward pass is the index of the best query. Of equal ones the first counts.
    """

    @staticmethod
    def forward(ctx: Any, picture_PNE: Tensor, text_TE: Tensor) -> Tensor:
        """As ``best_similarity``."""
        best_PT = picture_PNE[:, 0] @ text_TE.T
        index_PT = torch.zeros_like(best_PT, dtype=torch.int16)
        for query in range(1, picture_PNE.shape[1]):
            similarity_PT = picture_PNE[:, query] @ text_TE.T
            index_PT[similarity_PT > best_PT] = query
            torch.maximum(best_PT, similarity_PT, out=best_PT)
        ctx.save_for_backward(picture_PNE, text_TE, index_PT)
        return best_PT

    @staticmethod
    def backward(ctx: Any, grad_PT: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of pictures and texts, where they are wanted."""
        picture_PNE, text_TE, index_PT = ctx.saved_tensors
        grad_picture = torch.empty_like(picture_PNE) if ctx.needs_input_grad[0] else None
        grad_text = torch.zeros_like(text_TE) if ctx.needs_input_grad[1] else None
        for query in range(picture_PNE.shape[1]):
            share_PT = grad_PT.where(index_PT == query, 0.0)
            if grad_picture is not None:
                grad_picture[:, query] = share_PT @ text_TE
            if grad_text is not None:
                grad_text.addmm_(share_PT.T, picture_PNE[:, query])
        return grad_picture, grad_text


@torch.no_grad()
def gather(features: Tensor) -> Tensor:
    """(B, ...) of this rank -> (G, ...) of all ranks in rank order, without gradient (also with one
    process)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return features.detach()
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.contiguous())
    return torch.cat(parts)


def contrastive_layout(config: SeedTokenizerConfig) -> Layout:
    """Our parameter names of a ``ContrastiveModel`` with the official ones; ``temp``, a scalar, has the same
    name."""
    layout = {
        ours: parts for ours, parts in official_layout(config).items() if ours.startswith(ENCODER_PARTS)
    }
    layout.update(text_layout(config, "text_branch"))
    for name in ("vision_proj", "text_proj"):
        layout.update({f"{name}.{kind}": (f"{name}.{kind}",) for kind in ("weight", "bias")})
    return layout
