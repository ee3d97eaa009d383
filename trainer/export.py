"""From a checkpoint to a model in one process, and on to a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.vocabulary import VocabularyLayout
from trainer.checkpoint import load_full_model, read_description
from trainer.export_folder import whole_export
from trainer.huggingface import HuggingFaceWeights, MixtureMarks, export_model, exported_layout
from trainer.llama import Llama, LlamaConfig, RopeScaling
from trainer.lora import (
    LoraConfig,
    adapter_weights,
    add_adapters,
    is_adapter,
    merged,
    read_adapter,
    save_adapter,
)
from trainer.weights import WeightSource, fill_parameters, random_weights

_FIXED = {"progress": ("seed", "num_rows", "mixture"), "lora": ("rank", "alpha"), "optimizer": ("kind",)}
"""Settings that may not change on resume, beside all of the model and its vocabulary."""


def first_weights(
    init_from: str,
    adapter: str,
    seed: int,
    shape: LlamaConfig,
    layout: VocabularyLayout,
    lora: LoraConfig | None = None,
) -> WeightSource:
    """Weights that a run starts from: drawn, or of a Hugging Face folder, or of an adapter on top of it."""
    source: WeightSource = random_weights(shape, seed)
    if init_from:
        source = HuggingFaceWeights(Path(init_from), layout, seed)
    loaded = read_adapter(Path(adapter), layout, lora or LoraConfig()) if adapter else {}
    return adapter_weights(source, loaded, seed)


def describe_model(
    shape: LlamaConfig,
    layout: VocabularyLayout,
    lora: LoraConfig,
    init_from: str,
    marks: MixtureMarks | None = None,
    optimizer: str = "adamw",
) -> dict[str, Any]:
    """What a checkpoint says about its model and the kind of its optimizer, as JSON."""
    return {
        "model": asdict(shape),
        "vocabulary": asdict(layout),
        "lora": asdict(lora),
        "init_from": init_from,
        "base": _base_fingerprint(init_from, layout) if lora.rank else "",
        "marks": asdict(marks) if marks else None,
        "optimizer": {"kind": optimizer},
    }


def check_same_run(checkpoint: Path, own: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the setting, unless a run that is described so may go on from a checkpoint.

    Args:
        checkpoint: a complete one.
        own: of the run: what ``describe_model`` gives, and its fresh ``progress``.
    """
    saved = read_description(checkpoint)
    for section in ("progress", "vocabulary", "model", "lora", "optimizer"):
        # Checkpoints of older releases name no optimizer, and their mixture is empty.
        before = saved.get(section, own[section])
        for name in _FIXED.get(section, own[section]):
            if before.get(name) not in (own[section][name], ""):
                full_name = name if section == "progress" else f"{section}.{name}"
                raise ValueError(
                    f"{checkpoint}: {full_name} was {before.get(name)}, this run has {own[section][name]}; "
                    "resume with the same data and settings, or choose another output folder"
                )
    if own["lora"]["rank"] and saved.get("base") != own["base"]:
        raise ValueError(
            f"{checkpoint}: adapters belong to the frozen weights of {_named_base(saved)}, model.init_from "
            f"is now {_named_base(own)}; resume on what the run began from, or choose another output folder"
        )


def _base_fingerprint(init_from: str, layout: VocabularyLayout) -> str:
    """Of the frozen weights that a LoRA run reads from a folder; empty where they are drawn from the seed."""
    return HuggingFaceWeights(Path(init_from), layout, seed=0).fingerprint() if init_from else ""


def _named_base(description: Mapping[str, Any]) -> str:
    fingerprint = description.get("base")
    return f"{description['init_from']} ({fingerprint[:12]})" if fingerprint else "no folder"


def checkpoint_marks(checkpoint: Path) -> MixtureMarks | None:
    """Marks of a checkpoint's mixture; None in one of an older release."""
    fields = read_description(checkpoint).get("marks")
    return MixtureMarks(**fields) if fields else None


def load_checkpoint(checkpoint: Path) -> tuple[Llama, VocabularyLayout, LoraConfig]:
    """The model of a checkpoint, written under any parallelism, on the CPU of one process.

    Frozen weights of a LoRA run are not in its checkpoints: they are read again from where the run began.

    Raises:
        FileNotFoundError: there is no model any more where a LoRA run began.
        ValueError: there is another model.
    """
    description = read_description(checkpoint)
    fields = description["model"]
    scaling = fields.pop("rope_scaling")
    shape = LlamaConfig(**fields, rope_scaling=RopeScaling(**scaling) if scaling else None)
    layout, lora = VocabularyLayout(**description["vocabulary"]), LoraConfig(**description["lora"])
    with torch.device("meta"):
        model = Llama(shape)
        if lora.rank:
            add_adapters(model, lora)
    model.to_empty(device="cpu")
    model.tie()
    if lora.rank:
        _check_base(checkpoint, description, layout)
        seed = description["progress"]["seed"]
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        source = first_weights(description["init_from"], "", seed, shape, layout)
        fill_parameters(model, source, skip=trained.__contains__)
    load_full_model(checkpoint, _trained_only(model) if lora.rank else model.state_dict())
    return model.eval(), layout, lora


def _check_base(checkpoint: Path, description: Mapping[str, Any], layout: VocabularyLayout) -> None:
    found = _base_fingerprint(description["init_from"], layout)
    if found != description["base"]:
        raise ValueError(
            f"{checkpoint}: its adapters belong to {_named_base(description)}, where a model with other "
            f"weights lies now ({found[:12]}); put the former back there"
        )


def _trained_only(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _adapter_base(
    checkpoint: Path, folder: Path, model: Llama, layout: VocabularyLayout, dtype: torch.dtype
) -> Path | None:
    """The model that a run's adapters belong to; None where it had to be written to ``folder``."""
    description = read_description(checkpoint)
    init_from = description["init_from"]
    if init_from and exported_layout(Path(init_from)) == layout:
        return Path(init_from)
    source = first_weights(init_from, "", description["progress"]["seed"], model.config, layout)
    shapes = {name: value.shape for name, value in model.named_parameters() if not is_adapter(name)}
    tensors = ((name, source(name, shape)) for name, shape in shapes.items())
    export_model(folder, tensors, model.config, layout, dtype, checkpoint_marks(checkpoint))
    return None


def export_checkpoint(
    checkpoint: Path, folder: Path, dtype: torch.dtype = torch.bfloat16, tokenizer: Any = None
) -> None:
    """Write a checkpoint's model, adapters merged, to ``folder``; adapters alone to ``folder/adapter``.

    The adapter's configuration names the model it belongs to, its vocabulary grown as the run grew it: where
    the run began from another one, that base is written to ``folder/base``. ``tokenizer`` of
    ``grown_tokenizer`` goes with the model. A former export in ``folder`` is replaced when all is written.
    """
    model, layout, lora = load_checkpoint(checkpoint)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    marks = checkpoint_marks(checkpoint)
    with whole_export(folder) as partial:
        if lora.rank:
            base = _adapter_base(checkpoint, partial / "base", model, layout, dtype) or folder / "base"
            codebook = marks.codebook if marks else ""
            save_adapter(partial / "adapter", weights, lora, layout, str(base.absolute()), codebook)
        export_model(partial, merged(weights, lora), model.config, layout, dtype, marks)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
