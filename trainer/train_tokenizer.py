"""The stages of training a tokenizer, each from its configuration and batches to a directory."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tokenizer.augment import AugmentConfig
from tokenizer.caption_tokenizer import CaptionTokenizer, load_caption_tokenizer, word_tokenizer
from tokenizer.checkpoint import load_model
from tokenizer.codebook_stage import CodebookConfig
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel
from tokenizer.from_scratch import init_from_scratch
from tokenizer.generation_target import ClipTarget, SubstituteTarget
from tokenizer.initial_weights import load_initial_weights
from tokenizer.pixel_decoder import PixelDecoder
from tokenizer.seed import codes_fingerprint
from tokenizer.weights_file import file_sha256, tensors_sha256
from trainer.codebook_run import CodebookCareConfig, CodebookRun, tokenizer_of
from trainer.contrastive_run import WEIGHTS_NAME as STAGE1_WEIGHTS
from trainer.contrastive_run import ThumbnailConfig, fit_components, load_contrastive, run_contrastive
from trainer.pixels_run import run_pixels
from trainer.processes import choose_device, process_group
from trainer.run_lock import run_lock
from trainer.stage_config import StageRunConfig
from trainer.stage_data import Batches, HeldOut

logger = logging.getLogger(__name__)

SUBSTITUTE = "substitute"
WORDS_PREFIX = "words:"


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """One tokenizer, all stages."""

    stage: Literal["qformer", "codebook", "pixels"] = "qformer"
    """Which stage to run; each needs the ones before it."""
    output: Path = Path("out/tokenizer")
    """Each stage has its folder here; the finished tokenizer is ``codebook``."""
    device: str = "auto"
    """``auto`` takes this rank's GPU where there is one."""
    initial_weights: tuple[Path, ...] = ()
    """Files that stage 1 starts from (EVA's ViT, BLIP-2's Q-Former); what they lack is drawn."""
    model: SeedTokenizerConfig = field(default_factory=SeedTokenizerConfig)
    captions: str = "bert-base-uncased"
    """Caption tokenizer: path, hub id, or ``words:SIZE``, the words of the training captions."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    thumbnail: ThumbnailConfig = field(default_factory=ThumbnailConfig)
    contrastive_run: StageRunConfig = field(default_factory=StageRunConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    care: CodebookCareConfig = field(default_factory=CodebookCareConfig)
    generation_target: str = SUBSTITUTE
    """Path or ``owner/name:folder`` on the hub of a CLIP vision tower with projection, or ``substitute``."""
    codebook_run: StageRunConfig = field(
        default_factory=lambda: StageRunConfig(lr=1e-4, min_lr=1e-5, batch_size=256)
    )

    pixels_run: StageRunConfig = field(default_factory=lambda: StageRunConfig(lr=1e-3, min_lr=1e-5))

    @property
    def run_of_stage(self) -> StageRunConfig:
        """Length and rates of the chosen stage."""
        runs = {"qformer": self.contrastive_run, "codebook": self.codebook_run, "pixels": self.pixels_run}
        return runs[self.stage]


def run_stage(
    config: StagesConfig,
    batches: Batches,
    held_out: HeldOut | None,
    train_captions: Iterable[str],
    data: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Run the chosen stage to its end (or resume it); figures on the held-out pairs.

    The first process judges these, needs them and gets the figures; the others wait meanwhile.

    Args:
        config: of all stages.
        batches: training pairs.
        held_out: other pairs.
        train_captions: of them ``words:SIZE`` is made.
        data: what decides the batches, by name, beside length and seed of the run; a stage goes on only with
            the same.

    Raises:
        InterruptedError: SIGTERM or SIGINT ended it early; it goes on when called again.
        ValueError: its checkpoint is of other data or settings.
    """
    with process_group(choose_device(config.device)), run_lock(config.output / config.stage):
        settings = settings_of_stage(config) | {"data": data or {}}
        return _run_stage(config, batches, held_out, train_captions, settings)


def _run_stage(
    config: StagesConfig,
    batches: Batches,
    held_out: HeldOut | None,
    train_captions: Iterable[str],
    settings: dict[str, Any],
) -> dict[str, float]:
    directory = config.output / config.stage
    device = choose_device(config.device)
    rng = torch.Generator().manual_seed(config.run_of_stage.seed)
    if config.stage == "qformer":
        captions = caption_tokenizer(config.captions, train_captions)
        settings["vocabulary_sha256"] = captions.vocabulary_sha256
        model = ContrastiveModel(config.model, with_word_table(config.contrastive, captions.vocab_size))
        init_from_scratch(model, rng)
        if config.initial_weights:
            missing = load_initial_weights(model, config.initial_weights)
            # Frozen parts of the network are in no checkpoint: they come from these files again.
            settings["initial_weights_sha256"] = [file_sha256(path) for path in config.initial_weights]
            logger.info("drawn parameters=%d first=%s", len(missing), missing[:3])
        return run_contrastive(
            model.to(device), captions, batches, held_out, directory, config.contrastive_run, config.augment,
            config.thumbnail, settings,
        )  # fmt: skip
    if config.stage == "pixels":
        tokenizer, weights_sha256 = load_model(config.output / "codebook")
        settings["tokenizer"] = codes_fingerprint(weights_sha256, tokenizer.config, "fp32", {}).hex
        with torch.random.fork_rng([]):
            torch.manual_seed(config.pixels_run.seed)
            decoder = PixelDecoder(tokenizer.config.image_features_dim)
        return run_pixels(
            tokenizer.to(device), decoder.to(device), batches, held_out, directory, config.pixels_run,
            config.augment, settings, config.care.cached_views, config.care.whole_targets,
        )  # fmt: skip
    stage1, _ = load_contrastive(config.output / "qformer")
    settings["stage1_sha256"] = file_sha256(config.output / "qformer" / STAGE1_WEIGHTS)
    target = generation_target(config, stage1, batches)
    if isinstance(target, ClipTarget):
        settings["generation_target_sha256"] = tensors_sha256(target.state_dict())
    target = target.to(device)
    model_config = dataclasses.replace(config.model, image_features_dim=target.width)
    tokenizer = tokenizer_of(stage1, model_config, rng).to(device)
    run = CodebookRun(
        tokenizer, config.codebook, config.care, target, config.codebook_run, config.augment, settings
    )
    return run.execute(batches, held_out, directory)


def settings_of_stage(config: StagesConfig) -> dict[str, Any]:
    """What decides the curve of the chosen stage beside its run, by the names of the configuration."""
    if config.stage == "qformer":
        names = ["model", "captions", "contrastive", "thumbnail"]
        # Files may move between two runs.
        weights = {"initial_weights": [path.name for path in config.initial_weights]}
        return {name: getattr(config, name) for name in ("augment", *names)} | weights
    care = dataclasses.asdict(config.care)
    if config.stage == "pixels":
        care = {name: care[name] for name in ("cached_views", "whole_targets")}
        return {"augment": config.augment, "care": care}
    del care["stores_fp16"]
    names = ["augment", "model", "codebook", "generation_target"]
    return {name: getattr(config, name) for name in names} | {"care": care}


def with_word_table(stage: ContrastiveConfig, num_entries: int) -> ContrastiveConfig:
    """Settings whose word table has a row for each entry of the caption tokenizer, and the further rows asked
    for.

    Raises:
        ValueError: fewer rows are asked for than there are entries.
    """
    if not stage.vocab_size:
        return dataclasses.replace(stage, vocab_size=num_entries)
    if stage.vocab_size < num_entries:
        raise ValueError(
            f"contrastive.vocab_size {stage.vocab_size}: the caption tokenizer has {num_entries} entries; "
            "take as many rows as the initial weights have, or 0"
        )
    return stage


def caption_tokenizer(source: str, train_captions: Iterable[str]) -> CaptionTokenizer:
    """As ``captions`` of the configuration says."""
    if not source.startswith(WORDS_PREFIX):
        return load_caption_tokenizer(source)
    size = source.removeprefix(WORDS_PREFIX)
    if not size.isdigit():
        raise ValueError(f"captions: expected words:SIZE with a number, got {source!r}")
    return word_tokenizer(train_captions, int(size))


def generation_target(
    config: StagesConfig, stage1: ContrastiveModel, batches: Batches
) -> ClipTarget | SubstituteTarget:
    """CLIP's tower, or the substitute fitted on training pictures without augmentation."""
    if config.generation_target != SUBSTITUTE:
        return ClipTarget(config.generation_target)
    num_components = config.model.image_features_dim - stage1.stage.embed_dim
    if num_components < 1:
        raise ValueError(
            f"model.image_features_dim {config.model.image_features_dim} must exceed contrastive.embed_dim "
            f"{stage1.stage.embed_dim}, which the substitute target holds beside its components"
        )
    target = SubstituteTarget(stage1, num_components).to(choose_device(config.device))
    fit_components(target.components, batches)
    return target
