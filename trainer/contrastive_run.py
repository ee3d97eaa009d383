"""One run of stage 1: from initial weights to a directory that stage 2 starts from.

The directory holds ``stage1.safetensors`` (official names, ViT included), ``config.json``, ``stage1.json``
and the caption tokenizer.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas.atomic_write import write_atomically
from tokenizer.augment import AugmentConfig
from tokenizer.caption_tokenizer import CaptionTokenizer, load_caption_tokenizer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import (
    ContrastiveConfig,
    ContrastiveModel,
    contrast,
    contrastive_layout,
    gather,
)
from tokenizer.official_names import fuse, split
from tokenizer.thumbnail import ThumbnailComponents, ThumbnailTask, thumbnails
from tokenizer.weights_file import write_tensors
from trainer.evaluation.retrieval import retrieval, retrieval_by_query
from trainer.processes import on_first_rank
from trainer.stage_config import StageRunConfig
from trainer.stage_data import Batches, HeldOut, judged, views_of
from trainer.stage_loop import StageLoop, StepResult

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "stage1.safetensors"
STAGE_NAME = "stage1.json"
EVALUATION_BATCH = 64
FIT_STEPS, FIT_PICTURES = 24, 8192
"""Principal components are fitted on so many batches of all ranks together, or until there are so many
pictures (12 kB of thumbnail each)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThumbnailConfig:
    """A second loss of stage 1 where no trained ViT and Q-Former are at hand (``tokenizer.thumbnail``)."""

    weight: float = 0.0
    """Of the mean square error of the thumbnail's components, beside the contrastive loss; 0: none."""
    window: int = 16
    """Components that a query tells."""
    stride: int = 2
    """How much finer those of the next query are."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.window < 1 or self.stride < 1:
            raise ValueError(
                "thumbnail.weight must not be negative, thumbnail.window and thumbnail.stride at least 1"
            )


class ContrastiveStep(nn.Module):
    """The network of stage 1 with the loss as its output, as the loop wants it."""

    def __init__(
        self, model: ContrastiveModel, thumbnail: ThumbnailTask | None = None, weight: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.thumbnail = thumbnail
        self.thumbnail_weight = weight

    def forward(
        self, images_B: Tensor, ids_BT: Tensor, mask_BT: Tensor, components_BK: Tensor | None = None
    ) -> StepResult:
        """One batch on its device; with a thumbnail task the components of the pictures, too."""
        queries_BND = self.model.causal_embeddings(images_B)
        out = contrast(
            self.model.project(queries_BND),
            self.model.text_features(ids_BT, mask_BT),
            self.model.temp,
            self.model.stage,
        )
        loss = out.loss
        hits = (out.logits_i2t_BG.argmax(dim=1) == out.targets_B).float().mean()
        metrics: dict[str, Tensor] = {"batch_R@1": hits, "temperature": self.model.temp.detach()}
        if self.thumbnail is not None and components_BK is not None:
            error = self.thumbnail(queries_BND, components_BK)
            loss = loss + self.thumbnail_weight * error
            metrics |= {"loss_contrastive": out.loss.detach(), "loss_thumbnail": error.detach()}
        return StepResult(loss, metrics)

    def train(self, mode: bool = True) -> "ContrastiveStep":
        """A frozen ViT stays in eval mode."""
        super().train(mode)
        self.model.vit.train(mode and self.model.stage.train_vit)
        return self


def run_contrastive(
    model: ContrastiveModel,
    captions: CaptionTokenizer,
    batches: Batches,
    held_out: HeldOut | None,
    output: Path,
    run: StageRunConfig,
    augmentation: AugmentConfig,
    thumbnail: ThumbnailConfig,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """Train (or resume) and write the directory; figures on the held-out pairs, empty but on the first rank.

    Args:
        model: on its device, with initial weights.
        captions: turns captions into ids.
        batches: training pairs.
        held_out: evaluated every ``run.evaluate_every`` steps, by the first process; others need none.
        output: directory of this stage.
        run: length, rates, batch.
        augmentation: of the pictures.
        thumbnail: the second loss.
        settings: all that decides the curve beside ``run``, for checkpoints.
    """
    device = model.temp.device
    views = views_of(batches, augmentation, run.seed, device)
    task = None
    if thumbnail.weight:
        rng = torch.Generator().manual_seed(run.seed)
        task = ThumbnailTask(
            model.config.num_query_token, model.config.bert_hidden, thumbnail.window, thumbnail.stride, rng
        )
        fit_components(task.to(device).components, batches)

    def inputs(step: int) -> tuple[Tensor, ...]:
        made = views(step)
        texts = (tensor.to(device) for tensor in captions.encode(made.captions))
        components = () if task is None else (task.components(made.pictures),)
        return (made.images, *texts, *components)

    step = ContrastiveStep(model, task, thumbnail.weight)
    loop = StageLoop(step, run, output, batches.steps_per_epoch, settings, batches.figures)
    loop.resume()

    def figures() -> dict[str, float]:
        return judged(held_out, lambda pairs: evaluate_contrastive(model, captions, pairs))

    loop.train(inputs, evaluate=figures)
    on_first_rank(lambda: save_contrastive(model, captions, output))
    return figures()


def fit_components(components: ThumbnailComponents, batches: Batches) -> None:
    """Fit on unaltered training pictures of all ranks, as one process with all their batches would.

    Raises:
        ValueError: fewer training pictures than components.
    """
    parts, num_pictures = list[Tensor](), 0
    for step in range(min(FIT_STEPS, batches.steps_per_epoch)):
        images = torch.as_tensor(batches.batch(step).images, device=components.mean_P.device)
        parts.append(gather(thumbnails(images)))
        num_pictures += len(parts[-1])
        if num_pictures >= FIT_PICTURES:
            break
    if num_pictures <= components.num_components:
        raise ValueError(
            f"{components.num_components} components of thumbnails want more than {num_pictures} pictures: "
            "give more data, or lower thumbnail.window, thumbnail.stride or model.image_features_dim"
        )
    components.fit(torch.cat(parts))
    for buffer in components.buffers():  # GPUs of two kinds may differ in the last bits, and in signs
        dist.broadcast(buffer, src=0)


@torch.inference_mode()
def pair_features(
    model: ContrastiveModel, captions: CaptionTokenizer, held_out: HeldOut
) -> tuple[Tensor, Tensor]:
    """Normalised features on the CPU: (I, N, E) of the pictures' queries and (I, E) of the captions."""
    device = model.temp.device
    images, texts = [], []
    for start in range(0, len(held_out.captions), EVALUATION_BATCH):
        some = slice(start, start + EVALUATION_BATCH)
        ids, mask = captions.encode(list(held_out.captions[some]))
        images.append(model.image_features(torch.as_tensor(held_out.images[some], device=device)).cpu())
        texts.append(model.text_features(ids.to(device), mask.to(device)).cpu())
    return torch.cat(images), torch.cat(texts)


def evaluate_contrastive(
    model: ContrastiveModel, captions: CaptionTokenizer, held_out: HeldOut
) -> dict[str, float]:
    """Retrieval by the last query, and ``R@mean query k`` for some queries alone."""
    images_INE, texts_IE = pair_features(model, captions, held_out)
    figures = retrieval(images_INE[:, -1], texts_IE)
    by_query: Mapping[int, float] = retrieval_by_query(images_INE, texts_IE)
    last = images_INE.shape[1]
    shown = sorted({1, 4, 12, 20, 28, last} & by_query.keys())
    return figures | {f"R@mean query {index}": by_query[index] for index in shown}


def save_contrastive(model: ContrastiveModel, captions: CaptionTokenizer, directory: Path) -> None:
    """Write weights by official name, both configurations, and the caption tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    ours = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    official = split(ours, contrastive_layout(model.config)) | {"temp": ours["temp"]}
    for name, entries in (
        ("config.json", model.config.to_dict()),
        (STAGE_NAME, dataclasses.asdict(model.stage)),
    ):
        write_atomically(directory / name, (json.dumps(entries, indent=1) + "\n").encode())
    captions.save(directory)
    write_tensors(official, directory / WEIGHTS_NAME)  # last: with it the stage is finished


def load_contrastive(directory: Path) -> tuple[ContrastiveModel, CaptionTokenizer]:
    """What ``save_contrastive`` wrote, on the CPU in eval mode.

    Raises:
        FileNotFoundError: the directory is not a finished stage 1.
    """
    if not (directory / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{directory}: no {WEIGHTS_NAME}; run stage qformer first")
    config = SeedTokenizerConfig.from_json(directory / "config.json")
    stage = ContrastiveConfig(**json.loads((directory / STAGE_NAME).read_text(encoding="utf-8")))
    model = ContrastiveModel(config, stage)
    official = load_file(directory / WEIGHTS_NAME)
    ours = fuse(official, contrastive_layout(config)) | {"temp": official["temp"]}
    model.load_state_dict(ours)
    return model.eval(), load_caption_tokenizer(str(directory))
