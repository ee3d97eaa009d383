"""Trained parts to start stage 1 from: EVA's ViT and BLIP-2's Q-Former, whole or in pieces, by their
published names.

``blip2_pretrained.pth`` has the names of a stage-1 checkpoint (with or without the ViT, and with heads that
stage 1 does not train); ``eva_vit_g.pth`` has the ViT's names without the prefix ``visual_encoder.`` and one
block more than is used. Neither file could be tried here: names follow the published loading code. A finished
tokenizer gives its image side; what stage 2 trained of it is left out.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveModel, contrastive_layout
from tokenizer.official_names import Layout, fuse, official_layout
from tokenizer.weights_file import read_tensors

logger = logging.getLogger(__name__)

VIT_PREFIX = "visual_encoder."
EVA_MARK = "patch_embed.proj.weight"
"""Stands at the top level only in a file that is a ViT alone."""
UNUSED = re.compile(
    r"(visual_encoder\.)(head|norm|fc_norm)\..*|Qformer\.cls\..*|.*position_ids|itm_head\..*|.*num_batches_tracked"
)
"""Published tensors that this stage has no place for."""


def load_initial_weights(model: ContrastiveModel, files: Iterable[Path]) -> list[str]:
    """Put the tensors of ``files`` into ``model``; later files win.

    Where text feed-forward layers are given and the queries' are not (a plain BERT), the queries start from
    the text's.

    Returns:
        Our parameter names that no file had; they keep their values.

    Raises:
        ValueError: a tensor that stage 1 does not know or of another shape; or no trained ViT for a frozen
            one.
    """
    official: dict[str, Tensor] = {}
    for path in files:
        official |= published_tensors(path, model.config)
    layout = contrastive_layout(model.config)
    known = _names(layout) | {"temp"}
    unknown = sorted(official.keys() - known)
    if unknown:
        raise ValueError(
            f"initial weights: {len(unknown)} tensors have no place in stage 1, first {unknown[:5]}"
        )
    given = {ours: parts for ours, parts in layout.items() if all(p is None or p in official for p in parts)}
    if not model.stage.train_vit and any(name.startswith("vit.") for name in layout.keys() - given.keys()):
        raise ValueError(
            "initial weights: the ViT is frozen but not all of it is given; add its weights (eva_vit_g.pth) "
            "or set contrastive.train_vit"
        )
    _copy(model, fuse(official, given) | ({"temp": official["temp"]} if "temp" in official else {}))
    missing = sorted(layout.keys() - given.keys())
    query_mlps = {name for name in layout if name.startswith("qformer.layers.") and ".mlp" in name}
    if query_mlps <= set(missing):
        model.init_query_mlps_from_text()
    logger.info("initial weights: %d of %d parameters given", len(given), len(layout))
    return missing


def published_tensors(path: Path, config: SeedTokenizerConfig) -> dict[str, Tensor]:
    """Tensors of a file by stage-1 names; what stage 1 never uses is left out."""
    tensors: Mapping[str, Tensor] = read_tensors(path)
    if EVA_MARK in tensors:
        tensors = {f"{VIT_PREFIX}{name}": tensor for name, tensor in tensors.items()}
    block_pattern = re.compile(rf"{re.escape(VIT_PREFIX)}blocks\.(\d+)\.")
    of_stage_2 = _names(official_layout(config)) - _names(contrastive_layout(config))

    def is_used(name: str) -> bool:
        if UNUSED.fullmatch(name) or name in of_stage_2:
            return False
        block = block_pattern.match(name)
        return block is None or int(block[1]) < config.vit_depth

    return {name: tensor for name, tensor in tensors.items() if is_used(name)}


def _names(layout: Layout) -> set[str]:
    return {part for parts in layout.values() for part in parts if part is not None}


@torch.no_grad()
def _copy(model: ContrastiveModel, ours: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in ours.items():
        if parameters[name].shape != tensor.shape:
            raise ValueError(
                f"initial weights: {name} is {list(tensor.shape)}, the model has "
                f"{list(parameters[name].shape)}; sizes (model, vocabulary, embed_dim) must be those of the "
                "weights"
            )
        parameters[name].copy_(tensor)
