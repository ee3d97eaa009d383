"""One run of stage 2: from a finished stage 1 to a complete tokenizer that ``tokenizer.checkpoint`` loads.

Logged beside the losses, over the codes of each logging window: entries used, perplexity, dead entries.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenizer.augment import AugmentConfig
from tokenizer.checkpoint import load_model, save_model
from tokenizer.code_usage import CodeUsage, count_codes, kmeans, reseed_dead, usage_figures
from tokenizer.codebook_stage import CodebookConfig, CodebookModel
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ENCODER_PARTS, ContrastiveModel, gather
from tokenizer.from_scratch import init_from_scratch
from tokenizer.seed import SeedModel
from trainer.batch_cache import BatchCache
from trainer.evaluation.codes import code_figures
from trainer.processes import on_first_rank
from trainer.stage_config import StageRunConfig
from trainer.stage_data import Batches, HeldOut, judged, step_generator, views_of
from trainer.stage_loop import StageLoop, StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CodebookCareConfig:
    """Options of stage 2 beside its loss, above all against unused codebook entries; all off in the
    release."""

    kmeans_vectors: int = 0
    """Start from k-means over this many vectors (of all ranks) before quantisation; 0 starts at random,
    uniform in +-1/E."""
    kmeans_iterations: int = 15
    reseed_every: int = 0
    """Steps after which entries that were not chosen since move to recent vectors; 0 never."""
    reseed_until: float = 0.7
    """No re-seeding after this fraction of the run."""
    whole_targets: bool = False
    """The generation target is of the whole picture, and so is what the pixel decoder draws: codes of views
    of one picture then agree more. False: of the view, as released."""
    stores_fp16: bool = False
    """Write the finished tokenizer in half precision."""
    cached_views: int = 0
    """Views of each picture whose features are made once and kept (16 KiB a view at width 128), here and for
    the pixel decoder; 0 makes new ones in every step, as released."""


def tokenizer_of(stage1: ContrastiveModel, config: SeedTokenizerConfig, rng: torch.Generator) -> SeedModel:
    """A tokenizer with the encoder of stage 1 and everything else drawn anew.

    Raises:
        ValueError: ``config`` wants another encoder than stage 1 trained.
    """
    model = SeedModel(config)
    init_from_scratch(model, rng)
    nn.init.uniform_(model.codebook.weight, -1 / config.n_embed, 1 / config.n_embed, generator=rng)
    trained = {k: v for k, v in stage1.state_dict().items() if k.startswith(ENCODER_PARTS)}
    try:
        model.load_state_dict(trained, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model: its encoder is not the one that stage 1 trained: {error}") from error
    return model


class CodebookStep(nn.Module):
    """The trained part of stage 2 with the loss as its output; remembers what the codebook care needs."""

    def __init__(self, model: CodebookModel) -> None:
        super().__init__()
        self.model = model
        self.usage = CodeUsage(model.model.config.n_embed)
        self.window = CodeUsage(model.model.config.n_embed)
        self.recent_z_RC = torch.empty(0)

    def forward(self, features_BND: Tensor, target_BF: Tensor) -> StepResult:
        """One batch of causal embeddings and generation targets."""
        out = self.model.quantize(features_BND, target_BF)
        counts_E = count_codes(out.codes_BN, len(self.usage.counts_E))
        self.usage.record(counts_E)
        self.window.record(counts_E)
        self.recent_z_RC = out.z_BNC.detach().flatten(0, 1)
        metrics = {
            "loss_vq": out.loss_vq,
            "loss_reconstruction": out.loss_reconstruction,
            "loss_generation": out.loss_generation,
        }
        return StepResult(out.loss, metrics)


class CodebookRun:
    """State of one run of stage 2."""

    def __init__(
        self,
        model: SeedModel,
        stage: CodebookConfig,
        care: CodebookCareConfig,
        target: Callable[[Tensor], Tensor],
        run: StageRunConfig,
        augmentation: AugmentConfig,
        settings: Mapping[str, Any],
    ) -> None:
        self.step_module = CodebookStep(CodebookModel(model, stage))
        self.model = model
        self.care = care
        self.target = target
        self.run = run
        self.augmentation = augmentation
        self.settings = settings

    def execute(self, batches: Batches, held_out: HeldOut | None, output: Path) -> dict[str, float]:
        """Train (or resume), write the tokenizer, and give figures on held-out pictures; these only on the
        first rank, which alone needs ``held_out``."""
        device = self.model.codebook.weight.device
        views = views_of(batches, self.augmentation, self.run.seed, device)

        def encoded(step: int) -> tuple[Tensor, Tensor]:
            images, pictures, _ = views(step)
            seen = pictures if self.care.whole_targets else images
            with self.run.autocast(device):
                return self.step_module.model.encode(images), self.target(seen)

        inputs: Callable[[int], tuple[Tensor, Tensor]] = encoded
        if self.care.cached_views:
            inputs = BatchCache(encoded, self.care.cached_views * batches.steps_per_epoch, self.run.seed)
            logger.info("cached batches=%d", self.care.cached_views * batches.steps_per_epoch)
        loop = StageLoop(
            self.step_module, self.run, output, batches.steps_per_epoch, self.settings, batches.figures
        )
        if loop.resume() == 0 and self.care.kmeans_vectors:
            self._start_from_kmeans(inputs)

        def figures(model: SeedModel) -> dict[str, float]:
            return judged(
                held_out,
                lambda pairs: code_figures(model, pairs.images, self.augmentation, self.run.seed),
            )

        loop.train(inputs, lambda step: self._after_step(step, loop), lambda: figures(self.model))
        dtype = torch.float16 if self.care.stores_fp16 else torch.float32
        on_first_rank(lambda: save_model(self.final_model(), output, dtype))
        stored, _ = load_model(output)
        return figures(stored.to(device).eval())

    def final_model(self) -> SeedModel:
        """The tokenizer, its configuration saying how the codebook was trained."""
        stage = self.step_module.model.stage
        self.model.config = dataclasses.replace(self.model.config, beta=stage.beta, legacy=stage.legacy_vq)
        return self.model

    @torch.no_grad()
    def _start_from_kmeans(self, inputs: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self.step_module.eval()
        vectors: list[Tensor] = []
        num_vectors = step = 0
        while num_vectors < self.care.kmeans_vectors:
            features, _ = inputs(step)
            of_all_ranks = gather(self.model.encode_task_layer(features).float().flatten(0, 1))
            num_vectors, step = num_vectors + len(of_all_ranks), step + 1
            if dist.get_rank() == 0:
                vectors.append(of_all_ranks.cpu())
        weight = self.model.codebook.weight

        def start() -> None:
            rng = torch.Generator().manual_seed(self.run.seed)
            weight.copy_(kmeans(torch.cat(vectors), len(weight), self.care.kmeans_iterations, rng))
            logger.info("kmeans vectors=%d centres=%d", num_vectors, len(weight))

        on_first_rank(start)
        dist.broadcast(weight, src=0)

    def _after_step(self, step: int, loop: StageLoop) -> None:
        module = self.step_module
        if (step + 1) % self.run.log_every == 0:
            figures = usage_figures(module.usage.counts_E)
            dead = self.model.config.n_embed - figures.used
            loop.log({"codes_used": figures.used, "perplexity": figures.perplexity, "codes_dead": dead})
            module.usage.reset()
        every = self.care.reseed_every
        if every and (step + 1) % every == 0:
            counts_E = module.window.counts_E.clone()
            module.window.reset()
            if step < self.care.reseed_until * self.run.steps:
                rng = step_generator(self.run.seed, step)
                moved = reseed_dead(self.model.codebook, counts_E, module.recent_z_RC, rng)
                loop.forget(self.model.codebook.weight, moved)
                logger.info("step=%d reseeded=%d", step + 1, len(moved))
