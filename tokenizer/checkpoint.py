"""Loading and saving whole tokenizers: every tensor must be there, none may be left over, all must fit."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from schemas.atomic_write import write_atomically
from tokenizer.config import SeedTokenizerConfig, config_from_shapes
from tokenizer.hub import CONFIG_NAME, PRESETS, WEIGHTS_NAME, locate
from tokenizer.official_names import Layout, fuse, official_layout, position_ids, split
from tokenizer.seed import SeedModel, SeedTokenizer
from tokenizer.weights_file import read_tensors, weights_sha256, write_tensors

logger = logging.getLogger(__name__)


def load_tokenizer(
    source: str | Path,
    *,
    precision: str = "fp32",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    causal: bool | None = None,
    config: SeedTokenizerConfig | None = None,
) -> SeedTokenizer:
    """A tokenizer ready for use.

    Args:
        source: preset, directory, file or hub id, see ``hub.locate``.
        precision: of image encoder and Q-Former: fp32, bf16 or fp16.
        batch_size: images per call of the network.
        device: where it runs.
        compiled: by ``torch.compile``, see ``SeedTokenizer``.
        causal: False for the bilateral variant; None leaves what the configuration says.
        config: of the weights, where neither a config.json nor the shapes tell it.

    Raises:
        FileNotFoundError: nothing is there; the message says what would be.
        ValueError: the source is not sound or does not fit; the message says what to do.
    """
    start = time.perf_counter()
    model, digest = load_model(source, causal=causal, config=config)
    tokenizer = SeedTokenizer(
        model,
        weights_sha256=digest,
        precision=precision,
        batch_size=batch_size,
        device=device,
        compiled=compiled,
    )
    logger.info(
        "tokenizer=%s weights_sha256=%s precision=%s batch_size=%d device=%s load_s=%.1f",
        source, digest[:12], precision, batch_size, device, time.perf_counter() - start,
    )  # fmt: skip
    return tokenizer


def load_model(
    source: str | Path,
    *,
    causal: bool | None = None,
    config: SeedTokenizerConfig | None = None,
    local_files_only: bool = False,
    drop_unexpected: bool = False,
) -> tuple[SeedModel, str]:
    """The fp32 network on the CPU and its ``weights_sha256``.

    Arguments and errors as ``load_tokenizer``; ``local_files_only`` never uses the network,
    ``drop_unexpected`` leaves out tensors that the model lacks.
    """
    files = locate(source, local_files_only=local_files_only)
    if config is None and files.config is not None:
        config = SeedTokenizerConfig.from_json(files.config)
    official = read_tensors(files.weights)
    if config is None:
        shapes = {name: tuple(tensor.shape) for name, tensor in official.items()}
        config = config_from_shapes(shapes, str(files.weights))
    preset = PRESETS.get(str(source))
    if preset is not None and preset.config is not None and preset.config != config:
        raise ValueError(
            f"{files.weights}: not the model that preset {source!r} names; its shapes say {config}"
        )
    if causal is not None:
        config = dataclasses.replace(config, causal=causal)
    if drop_unexpected:
        known = {part for parts in official_layout(config).values() for part in parts}
        dropped = sorted(official.keys() - known - position_ids(config).keys())
        logger.warning("dropped %d tensors that the model does not use: %s", len(dropped), dropped)
        official = {name: tensor for name, tensor in official.items() if name not in dropped}
    model = model_from_tensors(official, config, str(files.weights))
    return model, weights_sha256(official_tensors(model), config)


def save_model(model: SeedModel, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model.safetensors`` (official names, position ids included) and ``config.json``.

    Half precision halves the file; a tokenizer is what its file holds, so evaluate it after loading.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in official_tensors(model).items()}
    text = json.dumps(model.config.to_dict(), indent=1) + "\n"
    write_atomically(directory / CONFIG_NAME, text.encode())
    write_tensors(tensors | position_ids(model.config), directory / WEIGHTS_NAME)


def official_tensors(model: SeedModel) -> dict[str, Tensor]:
    """The parameters by official name, as views of ours."""
    return split(dict(model.named_parameters()), official_layout(model.config))


def model_from_tensors(official: Mapping[str, Tensor], config: SeedTokenizerConfig, source: str) -> SeedModel:
    """The network from official tensors, converted to fp32.

    Raises:
        ValueError: tensors are missing, left over, of another shape, not of a float dtype, or hold NaN or
            infinity; all are listed.
    """
    layout = official_layout(config)
    with torch.device("meta"):
        model = SeedModel(config)
    _check_tensors(official, expected_shapes(model, layout), set(position_ids(config)), source)
    floats = {name: official[name].float() for parts in layout.values() for name in parts if name}
    _check_values(floats, source)
    ours = fuse(floats, layout)
    model.load_state_dict(ours, assign=True)
    return model


def expected_shapes(model: SeedModel, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Official tensor name -> shape, of a model on any device."""
    shapes = {}
    parameters = dict(model.named_parameters())
    for ours, parts in layout.items():
        rows, *rest = parameters[ours].shape
        shapes.update({part: (rows // len(parts), *rest) for part in parts if part is not None})
    return shapes


def _check_tensors(
    official: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], optional: set[str], source: str
) -> None:
    missing = [name for name in expected if name not in official]
    unexpected = [name for name in official if name not in expected and name not in optional]
    wrong = [
        f"{name}: {list(official[name].shape)} {official[name].dtype}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in official and (official[name].shape != shape or not official[name].is_floating_point())
    ]
    if not (missing or unexpected or wrong):
        return
    findings = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("of another shape", wrong),
    ]
    raise ValueError(
        f"{source}: does not hold this tokenizer (of {len(expected)} tensors, {len(missing)} missing, "
        f"{len(wrong)} of another shape; {len(unexpected)} unexpected).\n"
        + "".join(findings)
        + _remedy(missing, unexpected, wrong)
    )


def _check_values(floats: Mapping[str, Tensor], source: str) -> None:
    """One NaN would make a code, the same one, of every picture. Extremes are found in one pass, uncopied."""
    unsound = [
        name
        for name, tensor in floats.items()
        if not all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())
    ]
    if unsound:
        raise ValueError(
            f"{source}: of {len(floats)} tensors, {len(unsound)} hold NaN or infinity.\n"
            + _listed("not finite", unsound)
            + "  The file is damaged or its training diverged: take a sound checkpoint."
        )


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"  {title}:\n    " + "\n    ".join(sorted(names)) + "\n"


def _remedy(missing: list[str], unexpected: list[str], wrong: list[str]) -> str:
    if any(name.startswith(("text_proj", "vision_proj", "Qformer.cls")) for name in unexpected):
        return (
            "  This is a checkpoint of training stage 1 (it has a text branch): give the finished tokenizer."
        )
    if any(name.startswith("visual_encoder") for name in missing):
        return (
            "  A training checkpoint holds only what its stage trained: merge it with the image encoder\n"
            "  and the Q-Former of the earlier stage, then load the merged file."
        )
    if wrong:
        return "  Weights and configuration do not belong together: give the config.json of these weights."
    if not missing:
        return (
            "  If these are leftovers of training, write a copy without them:\n"
            "  python -m tokenizer convert SOURCE DIRECTORY --drop-unexpected"
        )
    return "  Load the file with the whole state dict and official names; nothing is filled in silently."
