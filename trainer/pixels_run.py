"""One run of stage ``pixels``: the small decoder that draws a tokenizer's generation embeddings at 64x64.

The tokenizer is frozen; a picture's view is encoded to codes, the codes give the embedding, and the decoder
learns the thumbnail of the view (with ``whole_targets``, of the whole picture). Loss: mean absolute
difference, which blurs less than squares.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.augment import AugmentConfig
from tokenizer.pixel_decoder import SIDE, PixelDecoder, save_pixel_decoder
from tokenizer.seed import SeedModel
from tokenizer.thumbnail import thumbnails
from trainer.batch_cache import BatchCache
from trainer.evaluation.codes import encode_all
from trainer.processes import on_first_rank
from trainer.stage_config import StageRunConfig
from trainer.stage_data import Batches, HeldOut, judged, views_of
from trainer.stage_loop import StageLoop, StepResult


class PixelsStep(nn.Module):
    """The decoder with its loss as the output."""

    def __init__(self, decoder: PixelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embedding_BF: Tensor, target: Tensor) -> StepResult:
        """Embeddings and (B, 3, S, S) pictures in -1..1."""
        drawn = self.decoder(embedding_BF).float()
        return StepResult(F.l1_loss(drawn, target), {"psnr": psnr(drawn.detach(), target)})


def psnr(drawn: Tensor, target: Tensor) -> float:
    """Decibels, of pictures in -1..1."""
    return float(10 * torch.log10(4 / F.mse_loss(drawn.clamp(-1, 1), target)))


def run_pixels(
    model: SeedModel,
    decoder: PixelDecoder,
    batches: Batches,
    held_out: HeldOut | None,
    output: Path,
    run: StageRunConfig,
    augmentation: AugmentConfig,
    settings: Mapping[str, Any],
    cached_views: int = 0,
    whole_targets: bool = False,
) -> dict[str, float]:
    """Train (or resume), write ``pixel_decoder.safetensors``; figures on held-out pictures (which only the
    first rank needs and judges)."""
    model.eval().requires_grad_(False)
    device = model.codebook.weight.device
    views = views_of(batches, augmentation, run.seed, device)

    def embedded(step: int) -> tuple[Tensor, Tensor]:
        images, pictures, _ = views(step)
        with torch.inference_mode():
            with run.autocast(device):
                z_BNC = model.encode_features(images)
            embedding = model.generation_embedding(model.codebook.nearest(z_BNC.float()))
            target = thumbnails(pictures if whole_targets else images, SIDE)
        return embedding.clone(), target.clone()

    mean_picture = thumbnails(torch.as_tensor(batches.batch(0).images), SIDE).mean(dim=0, keepdim=True)
    loop = StageLoop(PixelsStep(decoder), run, output, batches.steps_per_epoch, settings, batches.figures)
    loop.resume()
    source: Callable[[int], tuple[Tensor, Tensor]] = embedded
    if cached_views:
        source = BatchCache(embedded, cached_views * batches.steps_per_epoch, run.seed)

    def figures() -> dict[str, float]:
        return judged(held_out, lambda pairs: pixel_figures(model, decoder, pairs, mean_picture))

    loop.train(source, evaluate=figures)
    on_first_rank(lambda: save_pixel_decoder(decoder, output))
    return figures()


@torch.inference_mode()
def pixel_figures(
    model: SeedModel, decoder: PixelDecoder, held_out: HeldOut, mean_picture: Tensor
) -> Mapping[str, float]:
    """PSNR on held-out pictures from their codes; from codes of other pictures and of the mean picture to
    compare."""
    codes = encode_all(model, held_out.images)
    target = thumbnails(torch.as_tensor(held_out.images), SIDE)
    drawn = decoder(model.generation_embedding(codes.to(model.codebook.weight.device))).cpu()
    return {
        "psnr": psnr(drawn, target),
        "psnr of another picture's codes": psnr(drawn.roll(1, dims=0), target),
        "psnr of the mean picture": psnr(mean_picture.expand_as(target), target),
    }
