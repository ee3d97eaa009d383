"""The loop of the tokenizer stages: resume equals uninterrupted, schedules, weight decay, refusal of bad
losses."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainer.runs import run_in_processes
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel
from trainer.checkpoint import complete_checkpoints, load_full_model, read_progress
from trainer.processes import process_group
from trainer.stage_config import StageRunConfig
from trainer.stage_loop import StageLoop, StepResult, parameter_groups

RUN = StageRunConfig(steps=8, batch_size=4, lr=1e-2, warmup_steps=2, log_every=2, checkpoint_every=4)


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    with process_group(torch.device("cpu")):
        yield


class Regression(nn.Module):
    """A small network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 1)

    def forward(self, x: Tensor, y: Tensor) -> StepResult:
        hidden = nn.functional.dropout(self.norm(self.first(x)).relu(), 0.3, self.training)
        return StepResult((self.last(hidden) - y).square().mean(), {})


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return x, x.sum(dim=1, keepdim=True)


def start(seed: int = 0) -> Regression:
    torch.manual_seed(seed)
    return Regression()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = start()
    StageLoop(whole, RUN, tmp_path / "whole", 2).train(batch)
    first = StageLoop(start(), RUN, tmp_path / "cut", 2)
    with pytest.raises(KeyboardInterrupt):
        first.train(
            batch, after_step=lambda step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 5 else None
        )
    torch.rand(7)  # whatever happens between
    resumed = start(seed=1)
    loop = StageLoop(resumed, RUN, tmp_path / "cut", 2)
    assert loop.resume() == 4
    loop.train(batch)
    for ours, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("change", [{"seed": 7}, {"lr": 1.0}, {"batch_size": 9}, {"steps": 12}], ids=str)
def test_a_run_with_other_settings_does_not_go_on(change: dict[str, Any], tmp_path: Path) -> None:
    StageLoop(start(), RUN, tmp_path, 2).train(batch)
    (name, value), before = next(iter(change.items())), dataclasses.asdict(RUN)
    shown = "pairs a step" if name == "batch_size" else rf"run\.{name}"
    expected = f"step-00000008: {shown} was {before[name]}, this run has {value}.*another --output"
    with pytest.raises(ValueError, match=expected):
        StageLoop(start(), dataclasses.replace(RUN, **change), tmp_path, 2).resume()


def test_other_data_and_settings_of_the_stage_do_not_go_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": ContrastiveConfig(query="last"), "weights": [Path("a.pth")]}
    StageLoop(start(), RUN, tmp_path, 2, settings).train(batch)
    with pytest.raises(ValueError, match="steps_per_epoch was 2, this run has 3"):
        StageLoop(start(), RUN, tmp_path, 3, settings).resume()
    with pytest.raises(ValueError, match=r"model\.query was last, this run has max"):
        other = settings | {"model": ContrastiveConfig(query="max")}
        StageLoop(start(), RUN, tmp_path, 2, other).resume()
    assert StageLoop(start(), RUN, tmp_path, 2, settings).resume() == RUN.steps


def test_intervals_may_change_and_a_constant_rate_may_go_on_longer(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, min_lr=RUN.lr)
    StageLoop(start(), run, tmp_path, 2).train(batch)
    longer = dataclasses.replace(run, steps=12, log_every=3, evaluate_every=1, checkpoint_every=5)
    assert StageLoop(start(), longer, tmp_path, 2).resume() == run.steps


@pytest.mark.parametrize("width", [16, 8])
def test_a_checkpoint_of_another_network_is_refused_by_name(width: int, tmp_path: Path) -> None:
    StageLoop(start(), RUN, tmp_path, 2).train(batch)
    model = start()
    model.first, model.added = nn.Linear(3, width), nn.Linear(1, 1)
    with pytest.raises(ValueError, match="step-00000008 does not fit this run: "):
        StageLoop(model, RUN, tmp_path, 2).resume()


def stop_at(step: int) -> Callable[[int], None]:
    """Sends this process SIGTERM after a step (0-based), so that the next one is the last."""
    return lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == step else None


def test_a_signal_saves_the_step_and_the_next_run_goes_on(tmp_path: Path) -> None:
    whole, cut = start(), start()
    StageLoop(whole, RUN, tmp_path / "whole", 2).train(batch)
    with pytest.raises(InterruptedError, match="after 2 of 8 steps; the same command goes on"):
        StageLoop(cut, RUN, tmp_path / "cut", 2).train(batch, after_step=stop_at(0))
    resumed = start(seed=1)
    loop = StageLoop(resumed, RUN, tmp_path / "cut", 2)
    assert loop.resume() == 2
    loop.train(batch, after_step=stop_at(6))  # too late to stop: the run is finished
    assert loop.step == RUN.steps
    for ours, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)


def stopped_by_rank_1(folder: str) -> str:
    loop = StageLoop(start(), RUN, Path(folder), 2)
    with pytest.raises(InterruptedError) as raised:
        loop.train(batch, after_step=stop_at(2) if dist.get_rank() == 1 else None)
    return str(raised.value)


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    messages = run_in_processes(stopped_by_rank_1, 2, str(tmp_path))
    assert all(message.startswith("stopped after 4 of 8 steps") for message in messages)
    assert read_progress(complete_checkpoints(tmp_path / "checkpoints")[-1]).step == 4


def test_metrics_are_written_as_json_lines(tmp_path: Path) -> None:
    StageLoop(start(), RUN, tmp_path, 2).train(batch, evaluate=lambda: {"held out": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert lines[-1] == {"step": 8, "held out": 0.5}
    assert lines[0]["loss"] > [line for line in lines if "loss" in line][-1]["loss"]


class Sum(nn.Module):
    """A loss that is the batch's mean, and a tensor and a number as metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> StepResult:
        loss = (self.weight + x).mean()
        return StepResult(loss, {"twice": 2 * loss, "number": float(x[0]), "count": x.int()[0]})


def logged_by_unequal_ranks(folder: str) -> None:
    run, rank = dataclasses.replace(RUN, steps=1, log_every=1), dist.get_rank()
    loop = StageLoop(Sum(), run, Path(folder), 1, data_figures=lambda: {"of data": rank / 2})
    loop.train(lambda step: (torch.full((4,), 1.0 + 100 * rank),))


def test_logged_figures_are_means_over_the_ranks(tmp_path: Path) -> None:
    run_in_processes(logged_by_unequal_ranks, 2, str(tmp_path))
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["loss"], line["twice"], line["number"], line["count"]) == (51, 102, 51, 51)
    assert line["of data"] == 0.25


def test_a_bad_loss_stops_before_the_step(tmp_path: Path) -> None:
    model = start()
    loop = StageLoop(model, dataclasses.replace(RUN, checkpoint_every=1), tmp_path, 2)

    def poisoned(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        return (x, y / 0) if step == 3 else (x, y)

    with pytest.raises(FloatingPointError, match="step 3"):
        loop.train(poisoned)
    newest = complete_checkpoints(tmp_path / "checkpoints")[-1]
    assert read_progress(newest).step == 3
    saved = start(seed=1).state_dict()
    load_full_model(newest, saved)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


class Root(nn.Module):
    """The loss is 0 where its gradient is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> StepResult:
        return StepResult((self.weight * x).square().sum().sqrt(), {})


def root_batch(step: int, bad_step: int) -> tuple[Tensor]:
    return (torch.full((4, 1), 0.0 if step == bad_step else 1.0),)


def test_a_bad_gradient_of_a_finite_loss_stops_before_the_step(tmp_path: Path) -> None:
    model = Root()
    loop = StageLoop(model, dataclasses.replace(RUN, checkpoint_every=1), tmp_path, 2)
    with pytest.raises(FloatingPointError, match=r"step 3: loss is 0\.0, norm of the gradient nan"):
        loop.train(lambda step: root_batch(step, 3))
    assert model.weight.isfinite().all()
    assert read_progress(complete_checkpoints(tmp_path / "checkpoints")[-1]).step == 3


def bad_loss_of_rank_1(folder: str) -> str:
    """The message with which this rank ends."""
    rank = dist.get_rank()

    def inputs(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        return (x, y / 0) if rank == 1 and step == 2 else (x, y)

    loop = StageLoop(start(), dataclasses.replace(RUN, checkpoint_every=1), Path(folder), 2)
    with pytest.raises(FloatingPointError) as raised:
        loop.train(inputs)
    return str(raised.value)


def test_a_bad_loss_of_one_rank_ends_all(tmp_path: Path) -> None:
    messages = run_in_processes(bad_loss_of_rank_1, 2, str(tmp_path))
    assert all(message.startswith("step 2: ") for message in messages)
    assert read_progress(complete_checkpoints(tmp_path / "checkpoints")[-1]).step == 2


def test_cosine_schedule() -> None:
    run = StageRunConfig(steps=100, lr=1.0, min_lr=0.1, warmup_lr=0.01, warmup_steps=10)
    assert run.lr_at(0, 5) == pytest.approx(0.01)
    assert run.lr_at(10, 5) == pytest.approx(1.0)
    assert run.lr_at(55, 5) == pytest.approx(0.55)
    assert run.lr_at(100, 5) == pytest.approx(0.1)


def test_released_schedule_steps_once_an_epoch() -> None:
    """Golden notes, section 7: warm-up in epoch 0, then constant, then a cosine per epoch."""
    run = StageRunConfig(
        lr=3e-5, min_lr=3e-6, warmup_lr=3e-7, warmup_steps=20, schedule="released", max_epochs=10
    )
    assert run.lr_at(10, 50) == pytest.approx(3e-7 + (3e-5 - 3e-7) / 2)
    assert run.lr_at(49, 50) == run.lr_at(20, 50) == pytest.approx(3e-5)
    for epoch in (1, 4, 9):
        expected = 3e-6 + (3e-5 - 3e-6) / 2 * (1 + math.cos(math.pi * epoch / 10))
        assert run.lr_at(50 * epoch, 50) == run.lr_at(50 * epoch + 49, 50) == pytest.approx(expected)


def test_released_decay_rule_decays_tables_and_the_default_does_not() -> None:
    config = SeedTokenizerConfig(
        patch_size=56, vit_width=8, vit_depth=1, vit_heads=2, vit_mlp_hidden=8, bert_hidden=8, bert_layers=1,
        bert_heads=2, bert_intermediate=8, block_heads=2, n_embed=16,
    )  # fmt: skip
    model = ContrastiveModel(config, ContrastiveConfig(vocab_size=9, embed_dim=4))
    tables = {id(p) for p in (model.qformer.queries, model.text_branch.word_embeddings.weight)}
    for released in (True, False):
        run = StageRunConfig(decay_tables=released)
        decayed, plain = (group["params"] for group in parameter_groups(model, run))
        assert all(p.ndim >= 2 for p in decayed)
        assert tables <= {id(p) for p in (decayed if released else plain)}
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert len(decayed) + len(plain) == len(trainable)
        assert not any(p is q for p in model.vit.parameters() for q in decayed + plain)


def test_replaced_rows_lose_their_moments(tmp_path: Path) -> None:
    model = start()
    loop = StageLoop(model, RUN, tmp_path, 2)
    loop.train(batch)
    loop.forget(model.first.weight, torch.tensor([1, 5]))
    moments = loop.optimizer.state[model.first.weight]["exp_avg"]
    assert not moments[[1, 5]].any()
    assert moments[[0, 2, 3, 4]].all()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"min_lr": 1.0}, {"batch_size": 0}, {"max_grad_norm": -1.0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StageRunConfig(**wrong)
