"""LLaMA checkpoints in Hugging Face's format: read into a training run, and written from one."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout
from trainer.export_folder import whole_export
from trainer.llama import LlamaConfig, RopeScaling
from trainer.weights import grow_table

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""As peft names it."""
TABLES = ("embed_tokens.weight", "lm_head.weight")
_SAMPLED_ROWS = 16
"""Of each matrix, for the fingerprint: a second for 8B models. A step of training changes every row."""


def read_config(folder: Path) -> LlamaConfig:
    """The shape of the model in ``folder``, from its ``config.json``; the vocabulary as it is there.

    Raises:
        FileNotFoundError: without a ``config.json``.
        ValueError: for another architecture, or a LLaMA variant that is not implemented; names the field.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a Hugging Face LLaMA folder")
    fields = json.loads(path.read_text(encoding="utf-8"))
    for name, allowed in (("model_type", "llama"), ("hidden_act", "silu")):
        if fields.get(name, allowed) != allowed:
            raise ValueError(f"{path}: {name} is {fields[name]!r}, only {allowed!r} is implemented")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise ValueError(f"{path}: {name} is set; only LLaMA without biases is implemented")
    if "num_attention_heads" not in fields:
        inside = "; it is a training run's: give the folder model in it" * (folder / "checkpoints").is_dir()
        raise ValueError(f"{path}: names no num_attention_heads, so it is no model's{inside}")
    num_heads = fields["num_attention_heads"]
    rope_theta, rope_scaling = _read_rope(fields, path)
    return LlamaConfig(
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=fields.get("num_key_value_heads") or num_heads,
        head_width=fields.get("head_dim") or fields["hidden_size"] // num_heads,
        mlp_width=fields["intermediate_size"],
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_length=fields.get("max_position_embeddings", 2048),
        is_tied=fields.get("tie_word_embeddings", False),
    )


def _read_rope(fields: Mapping[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from ``rope_parameters`` (transformers 5) or the two older fields."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind=kind, factor=float(rope["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            kind=kind,
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_length=int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(f"{path}: rope scaling {kind!r} is not implemented; known: default, linear, llama3")


class HuggingFaceWeights:
    """A ``WeightSource`` that reads one tensor at a time and grows the tables of ids.

    Safetensors are memory-mapped; older ``pytorch_model*.bin`` files are opened with ``weights_only``, so
    that nothing in them is executed.
    """

    def __init__(self, folder: Path, layout: VocabularyLayout, seed: int) -> None:
        self.folder = folder
        self.layout = layout
        self.seed = seed
        self._file_of = _tensor_files(folder)
        self._pickled: dict[str, dict[str, Tensor]] = {}

    def __call__(self, name: str, shape: torch.Size) -> Tensor:
        """The value of our parameter ``name``.

        Raises:
            ValueError: when the folder has no such tensor or another shape.
        """
        value = self._read(huggingface_name(name))
        if name in TABLES:
            value = grow_table(value, self.layout, name, self.seed)
        if value.shape != shape:
            raise ValueError(
                f"{self.folder}: {name} is {tuple(value.shape)} there and {tuple(shape)} in the model"
            )
        return value

    def fingerprint(self) -> str:
        """Hash over a sample of the layers' matrices; moving, re-sharding or widening the files keeps it."""
        digest = hashlib.sha256()
        for name in sorted(name for name in self._file_of if name.endswith("_proj.weight")):
            value = self._read(name)
            rows = torch.linspace(0, len(value) - 1, _SAMPLED_ROWS).long()
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value[rows].float().numpy().tobytes())
        return digest.hexdigest()

    def _read(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise ValueError(f"{self.folder} holds no tensor {name!r}; is it a LLaMA with a language head?")
        file = self._file_of[name]
        if file.endswith(".safetensors"):
            with safe_open(self.folder / file, framework="pt") as tensors:
                tensor: Tensor = tensors.get_tensor(name)
                return tensor
        if file not in self._pickled:
            self._pickled[file] = torch.load(self.folder / file, weights_only=True, mmap=True)
        return self._pickled[file][name]


def _tensor_files(folder: Path) -> dict[str, str]:
    """Which file holds each tensor of a single-file or sharded checkpoint."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if index.is_file():
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if single.is_file():
            return dict.fromkeys(_tensor_names(single), single.name)
    raise FileNotFoundError(f"{folder} holds neither model*.safetensors nor pytorch_model*.bin")


def _tensor_names(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return list(torch.load(path, weights_only=True, mmap=True))
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def huggingface_name(name: str) -> str:
    """Theirs from ours: all but the head lives below ``model.``."""
    return name if name.startswith("lm_head.") else f"model.{name}"


@dataclass(frozen=True)
class MixtureMarks:
    """What a model keeps of the mixture that it was trained on, for generation."""

    bos_id: int
    """Begins a document."""
    eos_id: int
    """Ends it."""
    codebook: str = ""
    """``Fingerprint.codebook_hex`` of the images' tokenizer; empty: there were none, or it is not known."""
    num_codes: int = CODEBOOK_SIZE
    """Entries of that codebook; no code beyond is ever drawn."""


def config_fields(
    config: LlamaConfig, layout: VocabularyLayout, dtype: torch.dtype, marks: MixtureMarks | None = None
) -> dict[str, Any]:
    """``config.json`` of an export; rotary fields in the older spelling, which every release reads."""
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": layout.size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.is_tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "seed_vocabulary": {"base_size": layout.base_size},
    }
    if marks is not None:
        fields |= {"bos_token_id": marks.bos_id, "eos_token_id": marks.eos_id}
        if marks.codebook:
            fields["seed_vocabulary"] |= {"codebook": marks.codebook, "num_codes": marks.num_codes}
    scaling = config.rope_scaling
    if scaling is not None:
        fields["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            fields["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
    return fields


def export_model(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    config: LlamaConfig,
    layout: VocabularyLayout,
    dtype: torch.dtype = torch.bfloat16,
    marks: MixtureMarks | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write config and sharded safetensors; padding rows of the vocabulary are left out.

    Args:
        folder: made when missing; a former export is replaced when the new one is whole.
        weights: (our name, full tensor), without adapters (merge them first).
        config: of the model.
        layout: of its vocabulary.
        dtype: of the written tensors.
        marks: of the mixture that the model was trained on.
        max_shard_size: of one file.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in weights:
        if config.is_tied and name == "lm_head.weight":
            continue
        kept = value[: layout.size] if name in TABLES else value
        tensors[huggingface_name(name)] = kept.detach().to("cpu", dtype).contiguous()
    with whole_export(folder) as partial:
        _write_tensors(partial, tensors, max_shard_size)
        fields = config_fields(config, layout, dtype, marks)
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _write_tensors(folder: Path, tensors: dict[str, Tensor], max_shard_size: str) -> None:
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def exported_marks(folder: Path) -> MixtureMarks | None:
    """Marks of a model that this module exported; None where it names none."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bos_id, eos_id = fields.get("bos_token_id"), fields.get("eos_token_id")
    if not isinstance(bos_id, int) or not isinstance(eos_id, int):
        return None
    num_codes = (fields.get("seed_vocabulary") or {}).get("num_codes", CODEBOOK_SIZE)
    return MixtureMarks(bos_id, eos_id, exported_codebook(folder), num_codes)


def exported_codebook(folder: Path) -> str:
    """Of an export's or an adapter's image codes; empty where it names none."""
    if (folder / ADAPTER_WEIGHTS).is_file():
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
            return str((tensors.metadata() or {}).get("codebook", ""))
    if not (folder / "config.json").is_file():  # whoever reads the model says so
        return ""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str((fields.get("seed_vocabulary") or {}).get("codebook", ""))


def exported_layout(folder: Path) -> VocabularyLayout | None:
    """The vocabulary of a model that this module exported; None for another model."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    seed = fields.get("seed_vocabulary")
    return VocabularyLayout(seed["base_size"]) if seed else None
