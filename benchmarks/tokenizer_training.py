"""Training the tokenizer: images/s and peak memory of both stages by batch size; the contrastive loss alone.

    python -m benchmarks.tokenizer_training --recipe recipes/tokenizer_small.yaml --batches 32 64 128
    python -m benchmarks.tokenizer_training --recipe recipes/tokenizer_seed2.yaml --batches 64 512    # a GPU
    python -m benchmarks.tokenizer_training --loss 1024 4096 --query max

Pictures, captions and weights are random. Each size runs in a process of its own, so that its peak is its
own: of the GPU's memory where there is one, else of the process beyond what it had with the model loaded.
The target of stage 2 is random too: CLIP's encoder comes on top (the paper: 2,944 of 23,260 MiB at batch
512).
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from schemas.settings import parse_settings
from tokenizer.codebook_stage import CodebookModel
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel, QueryChoice, contrast
from tokenizer.from_scratch import init_from_scratch
from tokenizer.seed import SeedModel
from trainer.stage_loop import parameter_groups
from trainer.train_tokenizer import StagesConfig

TEXT_IDS = 32
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What to measure."""

    recipe: Path = Path("recipes/tokenizer_small.yaml")
    batches: tuple[int, ...] = (32, 64, 128)
    stages: tuple[Literal["qformer", "codebook"], ...] = ("qformer", "codebook")
    loss: tuple[int, ...] = ()
    """Instead: the loss with that many pairs, 32 queries 256 wide, on one rank."""
    query: QueryChoice = "last"
    """Of the loss."""
    steps: int = 3
    """Timed, after one that is not."""


def main() -> None:
    """Measure each size in its own process and print a line for it."""
    benchmark = tyro.cli(Benchmark, description=__doc__)
    works = [("loss", size) for size in benchmark.loss] or [
        (stage, size) for stage in benchmark.stages for size in benchmark.batches
    ]
    for work in works:
        one = [sys.executable, "-m", "benchmarks.tokenizer_training", "--one", *map(str, work), *sys.argv[1:]]
        subprocess.run(one, check=True)


def measure(kind: str, size: int, benchmark: Benchmark) -> dict[str, float | str]:
    """One size: seconds of the fastest step and MiB at the peak."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "loss":
        step, before = loss_step(size, benchmark.query, device), peak_mib(device)
    else:
        step, before = stage_step(kind, size, benchmark, device), peak_mib(device)
    step()
    seconds = []
    for _ in range(benchmark.steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = peak_mib(device)
    grown = peak - (0 if device.type == "cuda" else before)
    return {"what": kind, "pairs": size, "pairs_s": size / min(seconds), "step_s": min(seconds), "MiB": grown}


def peak_mib(device: torch.device) -> float:
    """Peak so far of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def loss_step(num_pairs: int, query: QueryChoice, device: torch.device) -> Callable[[], None]:
    """Loss and gradients from random features."""
    stage = ContrastiveConfig(query=query)
    pictures = torch.randn(num_pairs, 32, stage.embed_dim, device=device)
    texts = torch.randn(num_pairs, stage.embed_dim, device=device)
    temp = torch.tensor(0.07, device=device, requires_grad=True)

    def step() -> None:
        image_BNE = F.normalize(pictures, dim=-1).requires_grad_()
        text_BE = F.normalize(texts, dim=-1).requires_grad_()
        contrast(image_BNE, text_BE, temp, stage).loss.backward()

    return step


def stage_step(kind: str, size: int, benchmark: Benchmark, device: torch.device) -> Callable[[], None]:
    """One optimiser step of a stage, as ``StageLoop`` takes it."""
    entries = yaml.safe_load(benchmark.recipe.read_text(encoding="utf-8"))
    entries.pop("data")
    config = replace(parse_settings(StagesConfig, entries), stage=kind)
    run, side = config.run_of_stage, config.model.img_size
    if kind == "qformer":
        network: nn.Module = ContrastiveModel(config.model, replace(config.contrastive, vocab_size=30_523))
    else:
        network = CodebookModel(SeedModel(config.model), config.codebook)
    init_from_scratch(network, torch.Generator().manual_seed(0))
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(network, run), lr=1e-4)
    images_B = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=device)
    ids_BT = torch.randint(1, 1000, (size, TEXT_IDS), device=device)
    target_BF = torch.randn(size, config.model.image_features_dim, device=device)

    def loss() -> Tensor:
        if kind == "qformer":
            out: Tensor = network(images_B, ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)).loss
            return out
        return network(images_B, target_BF).loss  # type: ignore[no-any-return]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        kind, size, *rest = sys.argv[2:]
        print(json.dumps(measure(kind, int(size), tyro.cli(Benchmark, args=rest))), flush=True)
    else:
        main()
