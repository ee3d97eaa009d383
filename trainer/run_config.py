"""The settings of a training run: one frozen tree, filled from YAML and flags by ``jobs/pretrain.py``."""

from dataclasses import dataclass, field
from pathlib import Path

from schemas.vocabulary import VocabularyLayout
from trainer.checkpoint import CheckpointConfig
from trainer.huggingface import read_config
from trainer.llama import LlamaConfig
from trainer.lora import LoraConfig
from trainer.metrics import MetricsConfig
from trainer.optimizer import OptimizerConfig
from trainer.parallelize import ParallelConfig
from trainer.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Packed shards and how they are read."""

    packed: str = ""
    """Folder of packed shards (``seed-pack build``)."""
    global_batch: int = 8
    """Sequences of one optimizer step, over all ranks."""
    micro_batch: int = 1
    """Sequences of one forward pass on one rank."""
    read_workers: int = 1
    """Threads of each rank that read steps ahead; their number changes no batch."""
    validation: str = ""
    """Folder of held-out packed shards; empty for none."""
    validation_sequences: int = 64
    """Rows of a validation, the first of the folder."""
    validation_every: int = 500
    """Steps between validations."""

    def __post_init__(self) -> None:
        names = ("global_batch", "micro_batch", "read_workers", "validation_sequences", "validation_every")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, and from what."""

    preset: str = "tiny"
    """Shape of a model that starts from random weights; not used with ``init_from``."""
    init_from: str = ""
    """Folder of a Hugging Face LLaMA: a text model, whose vocabulary is grown, or an export of ours."""
    adapter: str = ""
    """Folder of a peft adapter to go on from; needs ``lora`` of its rank."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"model.preset must be one of {list(PRESETS)}, got {self.preset!r}")

    def shape(self, layout: VocabularyLayout) -> LlamaConfig:
        """The model's shape with the vocabulary of the packed data."""
        base = read_config(Path(self.init_from)) if self.init_from else PRESETS[self.preset]
        return base.with_vocabulary(layout)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    output: str = "out/pretrain"
    """Folder of checkpoints, metrics and the final export: a new or empty one, or that of the run itself."""
    num_steps: int = 100
    """Optimizer steps of the whole run, those before a resume included."""
    seed: int = 0
    """Of first weights, order of the data and dropout."""
    device: str = "auto"
    """``cuda`` or ``cpu``; auto takes CUDA where there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=0))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    exports_model: bool = True
    """Write a Hugging Face folder ``model`` (and, with LoRA, ``adapter``) at the end."""
    text_tokenizer: str = ""
    """Folder of the text tokenizer of the mixture; goes into ``model`` with names for the added ids."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise ValueError("--output is empty: name the folder of the run")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        if self.exports_model and not self.checkpoint.every_steps:
            raise ValueError("checkpoint.every_steps 0 saves nothing to export; set exports_model to false")
        if self.model.adapter and not self.lora.rank:
            raise ValueError("model.adapter needs lora.rank, the rank of that adapter")
        if self.lora.rank and self.parallel.is_fp8:
            raise ValueError(
                "lora does not run with parallel.is_fp8, which replaces the matrices that adapters stand on;"
                " set parallel.is_fp8 to false"
            )
        if self.lora.rank and self.parallel.tensor > 1:
            raise ValueError("lora does not run with parallel.tensor > 1; use parallel.shard instead")
