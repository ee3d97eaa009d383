"""Low-rank adapters as the paper trains them: rank 16 on the seven projections; tables and norms in full.

Hu et al. 2021. File format and names are those of the ``peft`` package, both ways.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.vocabulary import VocabularyLayout
from trainer.dropout import dropout
from trainer.huggingface import ADAPTER_WEIGHTS, TABLES, huggingface_name
from trainer.llama import Llama
from trainer.weights import WeightSource, named_generator

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TRAINED_IN_FULL = ("embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm")
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The defaults are the paper's."""

    rank: int = 16
    """0 trains all weights instead."""
    alpha: float = 32.0
    """The low-rank product is scaled by alpha / rank."""
    dropout: float = 0.05
    """Of what goes into the low-rank product."""

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora.rank must not be negative and dropout be in [0, 1), got {self.rank}, {self.dropout}"
            )

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """A frozen matrix and a trained low-rank difference: ``x W' + scale * dropout(x) A' B'``."""

    def __init__(self, base: nn.Linear, config: LoraConfig, number: int) -> None:
        """Stand in for ``base``; ``number`` tells its dropout from that of the layer's other matrices."""
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        self.weight.requires_grad_(False)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, config.rank, device=device))
        self.scale = config.scale
        self.dropout = config.dropout
        self.number = number

    def forward(self, input: Tensor, dropout_keys_B: Tensor | None = None) -> Tensor:
        """(B, T, out); ``dropout_keys_B`` of ``layer_keys``, no dropout when None."""
        kept = input
        if dropout_keys_B is not None and self.dropout:
            kept = dropout(input, dropout_keys_B, self.number, self.dropout)
        return super().forward(input) + self.scale * F.linear(F.linear(kept, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The matrix with its adapter added."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


def add_adapters(model: Llama, config: LoraConfig) -> None:
    """Put an adapter on every projection and freeze their matrices; all else stays trained."""
    for block in model.blocks():
        for module in (block.self_attn, block.mlp):
            for name, child in list(module.named_children()):
                assert isinstance(child, nn.Linear)
                setattr(module, name, LoraLinear(child, config, PROJECTIONS.index(name)))


def adapter_weights(base: WeightSource, loaded: Mapping[str, Tensor], seed: int) -> WeightSource:
    """First values of adapters (A uniform as peft does, B zero), and of all else from ``base``.

    Args:
        base: source of weights that are no adapters.
        loaded: of an adapter file; these go first.
        seed: of the draws.
    """

    def draw(name: str, shape: torch.Size) -> Tensor:
        if name in loaded:
            if loaded[name].shape != shape:
                raise ValueError(
                    f"adapter: {name} is {tuple(loaded[name].shape)}, the run has {tuple(shape)}"
                )
            return loaded[name]
        if name.endswith("lora_B"):
            return torch.zeros(shape)
        if name.endswith("lora_A"):
            bound = 1 / math.sqrt(shape[1])
            return torch.empty(shape).uniform_(-bound, bound, generator=named_generator(seed, name))
        return base(name, shape)

    return draw


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith(("lora_A", "lora_B"))


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> Iterator[tuple[str, Tensor]]:
    """Weights with adapters added into their matrices, in fp32; names as without adapters."""
    for name, value in weights.items():
        if is_adapter(name):
            continue
        stem = name.removesuffix("weight")
        if f"{stem}lora_A" in weights:
            product = weights[f"{stem}lora_B"].float() @ weights[f"{stem}lora_A"].float()
            yield name, (value.float() + config.scale * product).to(value.dtype)
        else:
            yield name, value


def merge_adapters(model: Llama) -> None:
    """Replace adapters by plain matrices that hold their sum, in place."""
    for block in model.blocks():
        for module in (block.self_attn, block.mlp):
            for name, child in list(module.named_children()):
                if isinstance(child, LoraLinear):
                    plain = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                    plain.weight = nn.Parameter(child.merged_weight(), requires_grad=True)
                    setattr(module, name, plain)


def save_adapter(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: LoraConfig,
    layout: VocabularyLayout,
    base: str,
    codebook: str = "",
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` as peft does.

    Args:
        folder: made when missing.
        weights: full tensors by our names; frozen ones are not written.
        config: of the adapters.
        layout: of the vocabulary; padding rows are left out.
        base: name or folder of the model that the adapters belong to, its vocabulary already grown.
        codebook: of the image codes that it was trained on.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if is_adapter(name):
            tensors[f"{_PEFT_PREFIX}{huggingface_name(name)}.weight"] = value.contiguous()
        elif f"{name.removesuffix('weight')}lora_A" not in weights:
            kept = value[: layout.size] if name in TABLES else value
            tensors[_PEFT_PREFIX + huggingface_name(name)] = kept.contiguous()
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(PROJECTIONS),
        "modules_to_save": list(_TRAINED_IN_FULL),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "codebook": codebook}  # peft warns of what it does not know in the other file
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata=metadata)
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner can read
    (folder / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_adapter(folder: Path, layout: VocabularyLayout, config: LoraConfig) -> dict[str, Tensor]:
    """Tensors of an adapter folder under our names, tables padded again.

    Raises:
        FileNotFoundError: if ``folder`` is no adapter folder.
        ValueError: if its products are scaled otherwise than ``config`` says; names the settings.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected an adapter folder as peft writes it")
    _check_scale(folder / "adapter_config.json", config)
    weights: dict[str, Tensor] = {}
    for wrapped_name, value in load_file(path).items():
        name = wrapped_name.removeprefix(_PEFT_PREFIX).removeprefix("model.")
        name = name.replace(".lora_A.weight", ".lora_A").replace(".lora_B.weight", ".lora_B")
        padding = layout.padded_size - len(value) if name in TABLES else 0
        weights[name] = F.pad(value, (0, 0, 0, padding)) if padding else value
    return weights


def _check_scale(path: Path, config: LoraConfig) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if (fields["r"], float(fields["lora_alpha"])) != (config.rank, float(config.alpha)):
        raise ValueError(
            f"{path}: r {fields['r']} and lora_alpha {fields['lora_alpha']}, the run has"
            f" lora.rank {config.rank} and lora.alpha {config.alpha}; set them as in the file"
        )
    for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if fields.get(name):
            raise ValueError(f"{path}: {name} is set; only plain LoRA of one rank is implemented")
