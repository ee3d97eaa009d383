"""The language model: loss and perplexity of text and image ids, and images whose structure fails.

Dimensions: B rows, T ids of a row, V rows of the vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.packed_folder import PackedFolder
from schemas.vocabulary import CODES_PER_IMAGE, IMAGE_SPAN_LENGTH, VocabularyLayout
from trainer.generate import SamplingConfig, generate
from trainer.llama import KeyValueCache, Llama
from trainer.metrics import LossTable
from trainer.packed_data import collate

BATCH = 32
NO_ID = -1


@torch.inference_mode()
def language_losses(
    model: Llama, folder: PackedFolder, num_rows: int, batch_size: int = 4
) -> dict[str, float]:
    """Mean losses over learned ids, and perplexities, of the first packed rows.

    Args:
        model: whole, in evaluation mode, on one device.
        folder: packed rows that training did not see.
        num_rows: rows at most.
        batch_size: rows at once.

    Returns:
        ``loss``, ``loss_text``, ``loss_image``, ``loss/SOURCE`` and ``perplexity...`` of each; what has no
        ids is left out. Image ids are codes, ``<img>`` and ``</img>``.
    """
    device = next(model.parameters()).device
    table = LossTable(folder.source_names, folder.vocabulary, device)
    indices = list(range(min(num_rows, len(folder))))
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        batch = collate([folder[index] for index in chosen], chosen).to(device)
        losses_BT = model(batch.ids_BT, batch.positions_BT, batch.cu_seqlens_BN, batch.labels_BT)
        table.add(losses_BT, batch.labels_BT, batch.sources_BT)
    means = table.means()
    return means | {name.replace("loss", "perplexity", 1): math.exp(value) for name, value in means.items()}


@torch.inference_mode()
def image_structure(
    model: Llama,
    prompts: Sequence[NDArray[np.integer]],
    layout: VocabularyLayout,
    *,
    is_constrained: bool = False,
) -> dict[str, float]:
    """How often images are malformed, when nothing constrains the drawing or under ``generate``'s grammar.

    Each prompt is continued by ``<img>`` and then by the most probable ids. An image is sound when 32 codes
    follow and then ``</img>``. Under the constraint every image should be; the paper's discussion counts
    failures without.

    Args:
        model: whole, in evaluation mode, on one device.
        prompts: ids of each, BOS first, without ``<img>``.
        layout: of the vocabulary.
        is_constrained: by the grammar.

    Returns:
        percent of ``sound``, ``too few codes`` and ``too many codes`` images.
    """
    if not prompts:
        raise ValueError("image structure needs at least one prompt")
    if is_constrained:
        greedy = SamplingConfig(temperature=0.0, forces_image=True, max_new_ids=IMAGE_SPAN_LENGTH)
        parts = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
        images = [ids[1:] for part in parts for ids in generate(model, part, layout, NO_ID, greedy)]
    else:
        images = [_greedy_image(model, prompt, layout) for prompt in prompts]
    outcomes = Counter(image_outcome(drawn, layout) for drawn in images)
    names = ("sound", "too few codes", "too many codes")
    return {name: 100 * outcomes[name] / len(prompts) for name in names}


def _greedy_image(model: Llama, prompt: NDArray[np.integer], layout: VocabularyLayout) -> list[int]:
    """The 33 ids after prompt and ``<img>``."""
    weight = next(model.parameters())
    start = torch.tensor([*prompt.tolist(), layout.img_start_id], device=weight.device)[None]
    cache = KeyValueCache.empty(model.config, 1, start.shape[1] + CODES_PER_IMAGE + 1, like=weight)
    places = torch.arange(start.shape[1], device=weight.device)[None]
    drawn: list[int] = []
    logits = model(start, places, cache=cache, take_B=torch.tensor([start.shape[1] - 1]))
    for number in range(CODES_PER_IMAGE + 1):
        drawn.append(int(logits[0, 0, : layout.size].argmax()))
        place = torch.tensor([[start.shape[1] + number]], device=weight.device)
        if number < CODES_PER_IMAGE:
            ids = torch.tensor([[drawn[-1]]], device=weight.device)
            logits = model(ids, place, cache=cache, take_B=torch.zeros(1, dtype=torch.int64))
    return drawn


def image_outcome(drawn: Sequence[int], layout: VocabularyLayout) -> str:
    """What became of an image whose 33 ids after ``<img>`` these are."""
    first, last = layout.image_code_offset, layout.img_start_id
    num_codes = next((i for i, value in enumerate(drawn) if not first <= value < last), len(drawn))
    if num_codes < CODES_PER_IMAGE:
        return "too few codes"
    return "sound" if drawn[CODES_PER_IMAGE] == layout.img_end_id else "too many codes"
