"""Text to image: do drawn codes depend on the caption, and what do their pictures look like?

The figures without pictures need codes and the tokenizer only: among the images of the evaluation, how often
is the one nearest to a drawing that of its caption? Random drawings give chance.

Dimensions: I images, N codes each, F width of the generation embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.answering import AnsweringModel
from trainer.evaluation.documents import CaptionedImage
from trainer.evaluation.language_model import image_structure
from trainer.evaluation.pictures import (
    ClipSimilarity,
    extract,
    fid_network,
    frechet_distance,
    paired_similarity,
)
from trainer.evaluation.report import Tables
from trainer.evaluation.retrieval import RANKS, recalls
from trainer.generate import SamplingConfig

CodesIN = npt.NDArray[np.uint16]


def drawing_tables(
    model: AnsweringModel,
    pairs: Sequence[CaptionedImage],
    embed: Callable[[CodesIN], Tensor],
    sampling: SamplingConfig,
    batch_size: int = 16,
) -> tuple[CodesIN, Tables]:
    """Draw each pair's caption; compare with the codes of its image and count malformed images.

    Args:
        model: the language model.
        pairs: images with captions, no two the same.
        embed: (I, N) codes -> (I, F) generation embeddings.
        sampling: how to draw.
        batch_size: captions at once.

    Returns:
        (I, N) drawn codes, and the tables.
    """
    prompts = [[pair.references[0]] for pair in pairs]
    drawn = model.draw_codes(prompts, sampling, batch_size)
    real = np.stack([pair.codes for pair in pairs])
    title = f"codes drawn from {len(pairs)} captions"
    ids = [model.encode(prompt) for prompt in prompts]
    tables = {title: agreement_figures(drawn, real, embed)}
    for name, is_constrained in (("without constraint", False), ("constrained", True)):
        tables[f"images drawn {name}, percent"] = image_structure(
            model.model, ids, model.layout, is_constrained=is_constrained
        )
    return drawn, tables


def agreement_figures(
    drawn_IN: CodesIN, real_IN: CodesIN, embed: Callable[[CodesIN], Tensor]
) -> dict[str, float]:
    """How near each drawing is to its own image, against all others; ties never help."""
    num = len(real_IN)
    if num < 2:
        raise ValueError("drawings are compared among images: at least two are needed")
    equal_II = torch.from_numpy(np.stack([(row == real_IN).mean(axis=1) for row in drawn_IN]))
    own = equal_II.diagonal().mean().item()
    features, real_features = (
        F.normalize(embed(codes).cpu().double(), dim=-1) for codes in (drawn_IN, real_IN)
    )
    targets = torch.arange(num)
    figures = {
        "equal codes, own image %": 100 * own,
        "equal codes, another image %": 100 * (equal_II.mean().item() * num - own) / (num - 1),
        "distinct drawings %": 100 * len(np.unique(drawn_IN, axis=0)) / num,
    }
    for name, similarity in (("equal codes", equal_II), ("embedding", features @ real_features.T)):
        figures |= {f"{rank} by {name}": value for rank, value in recalls(similarity, targets).items()}
    return figures | {f"chance R@{k}": 100 * min(k, num) / num for k in RANKS}


def picture_tables(
    drawn_I: Tensor, real_I: Tensor, captions: Sequence[str], clip: ClipSimilarity | None, inception: str
) -> Tables:
    """CLIP similarities and FID, as far as the networks for them are given; beside those of shuffled pairs.

    Args:
        drawn_I: (I, H, W, 3) uint8.
        real_I: (I, H', W', 3) uint8, in the same order.
        captions: of the same pairs.
        clip: the CLIP model.
        inception: features for FID (``fid_network``); empty for none.
    """
    table: dict[str, float] = {}
    if clip is not None:
        made, real = clip.images(drawn_I), clip.images(real_I)
        table["CLIP similarity i2t"] = paired_similarity(made, clip.texts(captions))
        table["CLIP similarity i2i"] = paired_similarity(made, real)
        table["CLIP similarity i2i of shuffled pairs"] = paired_similarity(made.roll(1, 0), real)
    if inception:
        network = fid_network(inception)
        table["FID"] = frechet_distance(extract(network, real_I), extract(network, drawn_I))
    return {f"pictures drawn from {len(drawn_I)} captions": table} if table else {}
