"""Starting stage 1 from published files: pieces in their own naming give the golden network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tokenizer.training_golden import STAGE1, stage1_batch, stage1_config
from tokenizer.checkpoint import save_model
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel
from tokenizer.from_scratch import init_from_scratch
from tokenizer.initial_weights import load_initial_weights
from tokenizer.seed import SeedModel
from tokenizer.weights_file import read_tensors


def fresh(**changes: object) -> ContrastiveModel:
    stage = ContrastiveConfig(**{"vocab_size": 400, "embed_dim": 16, "dropout": 0.0} | changes)
    model = ContrastiveModel(stage1_config(), stage)
    init_from_scratch(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def pieces(tmp_path: Path) -> tuple[Path, Path]:
    """The golden weights as an EVA file (no prefix, one block too many, a head) and a BLIP-2 file (.pth)."""
    tensors = read_tensors(STAGE1 / "model.safetensors")
    vit = {
        k.removeprefix("visual_encoder."): v for k, v in tensors.items() if k.startswith("visual_encoder.")
    }
    last = {k.replace("blocks.2.", "blocks.3."): v + 1 for k, v in vit.items() if k.startswith("blocks.2.")}
    eva, blip2 = tmp_path / "eva.safetensors", tmp_path / "blip2.pth"
    save_file(vit | last | {"head.weight": torch.zeros(2, 2), "norm.weight": torch.zeros(2)}, eva)
    rest = {k: v for k, v in tensors.items() if not k.startswith("visual_encoder.")}
    torch.save({"model": rest | {"itm_head.weight": torch.zeros(2, 48)}}, blip2)
    return eva, blip2


def test_pieces_give_the_golden_network(pieces: tuple[Path, Path]) -> None:
    model = fresh()
    assert load_initial_weights(model, pieces) == []
    loss = model.train()(*stage1_batch()).loss.item()
    assert loss == pytest.approx(float(np.load(STAGE1 / "golden.npz")["w1/loss"]), abs=1e-5)


def test_queries_start_from_berts_feed_forward_layers(pieces: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = read_tensors(pieces[1])
    bert = {
        k: v
        for k, v in tensors.items()
        if k.startswith("Qformer.bert") and "query." not in k.split("layer")[-1]
    }
    bert = {k: v for k, v in bert.items() if "_query" not in k and "crossattention" not in k}
    torch.save(bert, tmp_path / "bert.pth")
    model = fresh(train_vit=True)
    missing = load_initial_weights(model, [tmp_path / "bert.pth"])
    assert "qformer.layers.0.mlp.fc1.weight" in missing
    for shared, text in zip(model.qformer.layers, model.text_branch.layers, strict=True):
        assert torch.equal(shared.mlp.fc1.weight, text.mlp.fc1.weight)


def test_a_finished_tokenizer_gives_its_image_side(tmp_path: Path) -> None:
    finished = SeedModel(stage1_config())
    init_from_scratch(finished, torch.Generator().manual_seed(5))
    save_model(finished, tmp_path)
    model = fresh()
    missing = load_initial_weights(model, [tmp_path / "model.safetensors"])
    assert all(name.startswith(("text_", "vision_proj")) for name in missing)
    for part in ("vit", "ln_vision", "qformer"):
        for name, value in finished.get_submodule(part).state_dict().items():
            if "folded" not in name:
                assert torch.equal(model.state_dict()[f"{part}.{name}"], value), name


def test_a_frozen_vit_must_be_given_and_sizes_must_fit(pieces: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the ViT is frozen"):
        load_initial_weights(fresh(), pieces[1:])
    with pytest.raises(ValueError, match=r"_proj\.weight is \[16, 48\], the model has \[8, 48\]"):
        load_initial_weights(fresh(embed_dim=8), pieces)
    torch.save({"something.else": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"no place in stage 1, first \['something.else'\]"):
        load_initial_weights(fresh(), [*pieces, tmp_path / "x.pth"])
