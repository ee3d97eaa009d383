"""All tables of one tokenizer: codes, retrieval, pictures drawn from codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenizer.augment import AugmentConfig
from tokenizer.checkpoint import load_model
from tokenizer.detokenizer import load_detokenizer
from tokenizer.thumbnail import thumbnails
from trainer.contrastive_run import load_contrastive
from trainer.evaluation.codes import code_figures
from trainer.evaluation.pictures import ClipSimilarity, paired_similarity
from trainer.evaluation.report import Tables
from trainer.evaluation.tokenizer_retrieval import tokenizer_retrieval
from trainer.pixels_run import psnr
from trainer.stage_data import HeldOut


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluation:
    """What to evaluate."""

    tokenizer: str
    """Preset, directory or hub id."""
    stage1: Path | None = None
    """Directory of stage 1, which has the text side; without, no retrieval."""
    draw: bool = False
    """Also draw the codes and compare the pictures with the originals."""
    diffusion: str | None = None
    """unCLIP pipeline that draws; without, the small pixel decoder."""
    clip: str | None = None
    """CLIP model for the similarity of drawn pictures to originals and captions (the paper's measure)."""
    seed: int = 0
    """Of the random views whose codes are compared."""
    device: str = "cpu"
    """Where the tokenizer runs: cpu, cuda, cuda:N."""


def tokenizer_tables(evaluation: TokenizerEvaluation, pairs: HeldOut, augment: AugmentConfig) -> Tables:
    """Figures on these pairs, as far as the parts for them are given."""
    model, _ = load_model(evaluation.tokenizer)
    model = model.to(evaluation.device).eval()
    title = f"codes of {len(pairs.captions)} pictures"
    tables: dict[str, Mapping[str, float]] = {
        title: code_figures(model, pairs.images, augment, evaluation.seed)
    }
    if evaluation.stage1 is not None:
        stage1, captions = load_contrastive(evaluation.stage1)
        tables |= tokenizer_retrieval(model, stage1.to(evaluation.device), captions, pairs)
    if evaluation.draw:
        tables["pictures drawn from codes"] = picture_figures(evaluation, pairs)
    return tables


def picture_figures(evaluation: TokenizerEvaluation, pairs: HeldOut) -> dict[str, float]:
    """PSNR at the drawn size, and CLIP similarities if a CLIP model is given; beside those of shuffled
    pairs."""
    detokenizer = load_detokenizer(evaluation.tokenizer, evaluation.diffusion, evaluation.device)
    drawn = torch.as_tensor(detokenizer.draw(detokenizer.tokenizer.encode(pairs.images)))
    originals = thumbnails(torch.as_tensor(pairs.images), drawn.shape[1])
    pixels = drawn.permute(0, 3, 1, 2).float() / 127.5 - 1
    figures = {"PSNR": psnr(pixels, originals), "PSNR of shuffled pairs": psnr(pixels.roll(1, 0), originals)}
    if evaluation.clip is not None:
        clip = ClipSimilarity(evaluation.clip, evaluation.device)
        real, made = clip.images(torch.as_tensor(pairs.images)), clip.images(drawn)
        figures["CLIP similarity i2i"] = paired_similarity(real, made)
        figures["CLIP similarity i2t"] = paired_similarity(made, clip.texts(pairs.captions))
        figures["CLIP similarity i2i of shuffled pairs"] = paired_similarity(real, made.roll(1, 0))
    return figures
