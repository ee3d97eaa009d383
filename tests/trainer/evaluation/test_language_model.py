"""Losses by modality against a plain computation, and what counts as a malformed image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.packed_folder import PackedFolder
from schemas.vocabulary import CODES_PER_IMAGE
from tests.trainer.runs import packed_folder
from tests.trainer.tiny import LAYOUT, tiny_model
from trainer.evaluation.language_model import image_outcome, image_structure, language_losses
from trainer.llama import Llama
from trainer.packed_data import collate


def test_losses_equal_plain_cross_entropy(tmp_path: Path) -> None:
    folder = PackedFolder(packed_folder(tmp_path, num_rows=5))
    model = tiny_model().eval()
    table = language_losses(model, folder, num_rows=4, batch_size=3)
    sums = {"text": [0.0, 0], "image": [0.0, 0]}
    for index in range(4):
        batch = collate([folder[index]], [index])
        with torch.no_grad():
            logits = model(batch.ids_BT, batch.positions_BT, batch.cu_seqlens_BN)[0]
        for place, label in enumerate(batch.labels_BT[0].tolist()):
            if label >= 0:
                cell = sums["image" if label >= folder.vocabulary.image_code_offset else "text"]
                cell[0] -= float(logits[place].log_softmax(dim=0)[label])
                cell[1] += 1
    for name, (total, count) in sums.items():
        assert table[f"loss_{name}"] == pytest.approx(total / count, abs=1e-4)
        assert table[f"perplexity_{name}"] == pytest.approx(math.exp(total / count), rel=1e-3)
    both = [sum(cell[i] for cell in sums.values()) for i in (0, 1)]
    assert table["loss"] == pytest.approx(both[0] / both[1], abs=1e-4)


CODES = [LAYOUT.image_code_offset + code for code in range(40)]


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ([*CODES[:CODES_PER_IMAGE], LAYOUT.img_end_id], "sound"),
        (CODES[: CODES_PER_IMAGE + 1], "too many codes"),
        ([*CODES[:20], LAYOUT.img_end_id, *CODES], "too few codes"),
        ([5, *CODES], "too few codes"),
    ],
)
def test_what_counts_as_malformed(script: list[int], outcome: str) -> None:
    assert image_outcome(script[: CODES_PER_IMAGE + 1], LAYOUT) == outcome


def test_a_real_network_gives_one_outcome_a_prompt() -> None:
    model: Llama = tiny_model().eval()
    table = image_structure(model, [np.array([1, 7]), np.array([1, 9, 4])], LAYOUT)
    assert sum(table.values()) == 100
    with pytest.raises(ValueError, match="at least one prompt"):
        image_structure(model, [], LAYOUT)
