"""Goldens of the published training code: both stages with gradients."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.tokenizer.conftest import GOLDEN_DIRECTORY
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel, contrastive_layout
from tokenizer.official_names import Layout, fuse, split
from tokenizer.weights_file import read_tensors

VALUE_TOLERANCE = 3e-5
"""Of the largest entry of each tensor: three times what fp32 and fp64 of the published code differ by."""
LOSS_TOLERANCE = 1e-5
STAGE1 = GOLDEN_DIRECTORY / "stage1"


def relative_error(ours: Tensor, golden: np.ndarray) -> float:
    """Largest difference over the largest golden entry."""
    expected = torch.as_tensor(golden)
    assert ours.shape == expected.shape
    return ((ours.detach() - expected).abs().max() / expected.abs().max()).item()


def official_gradients(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Gradients by official name, of the parameters that have one."""
    ours = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and p.ndim}
    return split(ours, {name: parts for name, parts in layout.items() if name in ours})


def stage1_config() -> SeedTokenizerConfig:
    """Sizes of the golden stage 1."""
    return SeedTokenizerConfig(
        vit_width=64, vit_depth=3, vit_heads=4, vit_mlp_hidden=279,
        bert_hidden=48, bert_layers=4, bert_heads=4, bert_intermediate=192,
    )  # fmt: skip


def stage1_model(**changes: object) -> ContrastiveModel:
    """The golden network in training mode, without dropout unless asked for."""
    config = stage1_config()
    stage = ContrastiveConfig(**{"vocab_size": 400, "embed_dim": 16, "dropout": 0.0} | changes)  # type: ignore[arg-type]
    model = ContrastiveModel(config, stage)
    official = read_tensors(STAGE1 / "model.safetensors")
    model.load_state_dict(fuse(official, contrastive_layout(config)) | {"temp": official["temp"]})
    return model.train()


def stage1_batch(part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, word ids and mask of some of the six golden pairs."""
    golden = np.load(STAGE1 / "golden.npz")
    images = np.load(GOLDEN_DIRECTORY / "tiny" / "golden.npz")["resized_u8"]
    arrays = (images, golden["text_input_ids"], golden["text_attention_mask"].astype(bool))
    images_B, ids_BT, mask_BT = (torch.as_tensor(array[part]) for array in arrays)
    return images_B, ids_BT, mask_BT


def shared_golden(name: str) -> Path:
    """A file of the large golden sets, which may be missing."""
    return Path(__file__).resolve().parents[3] / "shared" / "golden" / "training" / name
