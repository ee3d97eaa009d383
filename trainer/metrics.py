"""What a run reports: losses by source and modality, speed, memory; to the log, a JSON file, TensorBoard."""

import json
import logging
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.packed_shard import IGNORED_LABEL
from schemas.vocabulary import VocabularyLayout
from trainer.llama import LlamaConfig
from trainer.packed_data import StepData

logger = logging.getLogger(__name__)

_DENSE_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Vendors' figures without sparsity, per second."""

LOG_NAMES = {
    "loss_text": "text",
    "loss_image": "image",
    "learning_rate": "lr",
    "ids_per_s": "ids/s",
    "padding_fraction": "pad",
    "data_wait_fraction": "wait",
    "memory_gib": "GiB",
}
"""Names in the log line where they differ from those in the file."""


class LossTable:
    """Sums and counts of learned ids by source and by modality (0 text, 1 image), on the device.

    Whether an id counts as image is a matter of the id that is predicted: codes, ``<img>`` and ``</img>``.
    """

    def __init__(self, source_names: list[str], layout: VocabularyLayout, device: torch.device) -> None:
        self.source_names = source_names
        self._first_image_id = layout.image_code_offset
        self.values = torch.zeros(2, len(source_names) * 2, dtype=torch.float64, device=device)
        """(sums and counts, source x modality)."""

    def add(self, losses_BT: Tensor, labels_BT: Tensor, sources_BT: Tensor) -> None:
        """Add losses of one batch."""
        is_learned = labels_BT.flatten() != IGNORED_LABEL
        cell = (sources_BT * 2 + (labels_BT >= self._first_image_id)).flatten()[is_learned]
        losses = losses_BT.detach().flatten()[is_learned].double()
        self.values[0].scatter_add_(0, cell, losses)
        self.values[1].scatter_add_(0, cell, torch.ones_like(losses))

    @property
    def num_learned(self) -> int:
        return int(self.values[1].sum())

    def means(self) -> dict[str, float]:
        """``loss``, ``loss_text``, ``loss_image`` and ``loss/SOURCE``; what had no ids is left out."""
        cells = self.values.cpu().view(2, -1, 2)
        named = {
            "loss": cells.sum((1, 2)),
            "loss_text": cells[:, :, 0].sum(1),
            "loss_image": cells[:, :, 1].sum(1),
        }
        named |= {f"loss/{name}": cells[:, index].sum(1) for index, name in enumerate(self.source_names)}
        return {name: float(total / count) for name, (total, count) in named.items() if count > 0}


def flops_per_id(config: LlamaConfig, num_frozen: int, mean_attended: float) -> float:
    """Floating-point operations that one id of training needs, forward and backward.

    Six per trained parameter in a matrix product and four per frozen one (no gradient of the weight);
    attention as needed, that is within documents and causal: 12 per layer, channel and attended id.
    Recomputation does not count (PaLM, appendix B, with the causal half and packing taken into account).

    Args:
        config: of the model.
        num_frozen: parameters without gradient.
        mean_attended: ids that an id attends to, on average.
    """
    multiplied = config.num_projection_parameters + config.vocab_size * config.width
    attention = 12 * config.num_layers * config.num_heads * config.head_width * mean_attended
    return 6 * multiplied - 2 * num_frozen + attention


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second of the device; None where no figure is known (the CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for key, flops in _DENSE_BF16_FLOPS.items() if key in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that tensors took on the device; on the CPU, most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class SpeedMeter:
    """Speed since the last record, from what this rank computed and waited."""

    def __init__(self, config: LlamaConfig, num_frozen: int, data_ranks: int, device: torch.device) -> None:
        self._config = config
        self._num_frozen = num_frozen
        self._data_ranks = data_ranks
        self._device = device
        self._start()

    def _start(self) -> None:
        self._started = time.perf_counter()
        self._num_ids = self._num_padding = self._num_attended = 0
        self._wait_s = 0.0

    def add(self, data: StepData) -> None:
        """Count one step of this rank."""
        self._wait_s += data.wait_s
        for batch in data.micro_batches:
            self._num_ids += batch.ids_BT.numel() - batch.num_padding
            self._num_padding += batch.num_padding
            self._num_attended += batch.num_attended

    def flush(self) -> dict[str, float]:
        """Ids a second without padding over all ranks, share of peak, waiting, memory; start again."""
        elapsed_s = time.perf_counter() - self._started
        ids_per_s = self._num_ids * self._data_ranks / elapsed_s
        record = {
            "ids_per_s": ids_per_s,
            "padding_fraction": self._num_padding / (self._num_ids + self._num_padding),
            "data_wait_fraction": self._wait_s / elapsed_s,
            "memory_gib": peak_memory_bytes(self._device) / 2**30,
        }
        peak = peak_flops(self._device)
        if peak is not None:
            flops = flops_per_id(self._config, self._num_frozen, self._num_attended / self._num_ids)
            record["mfu"] = flops * ids_per_s / (peak * dist.get_world_size())
        self._start()
        return record


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What is reported when."""

    every_steps: int = 10
    """Steps between records; the first step, the last, and that of a stop have theirs as well."""
    uses_tensorboard: bool = False
    """Also write TensorBoard's files."""
    profile_step: int = 0
    """Step (from 1) of which a profiler trace is written; 0 for none."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"metrics.every_steps must be at least 1, got {self.every_steps}")


class MetricsWriter:
    """Writes records to ``metrics.jsonl`` and, on request, TensorBoard. Rank 0 only."""

    def __init__(self, folder: Path, first_step: int, config: MetricsConfig) -> None:
        """Open the files; records of steps after ``first_step``, of a killed run, are dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _keep_until(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: Any = None
        if config.uses_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: dict[str, float]) -> None:
        """Write one record; ``step`` is one of its fields."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        step = int(record["step"])
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, step)
        logger.info(log_line(record))

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Records of a ``metrics.jsonl``; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _keep_until(path: Path, step: int) -> None:
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)


def log_line(record: dict[str, float]) -> str:
    """A record in half the characters: short names, four digits; the file has all of it."""
    return " ".join(f"{LOG_NAMES.get(name, name)}={_short(value)}" for name, value in record.items())


def _short(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
