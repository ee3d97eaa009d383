"""Recipes of training tokenizers load, and ``released`` is what the published training code does."""

import json
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from jobs.command_line import EXIT_STOPPED
from jobs.config_file import parse_config
from jobs.train_tokenizer import TrainTokenizerConfig, main, train
from pipeline.training_pairs import (
    PairBatch,
    PairBatches,
    PairDataConfig,
    TrainingPair,
    read_held_out,
    split_pairs,
)
from tests.trainer.runs import run_in_processes
from tests.trainer.test_train_tokenizer import MODEL
from tokenizer.codebook_stage import RELEASED, CodebookConfig
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig
from tokenizer.preprocess import PreprocessConfig
from trainer.stage_config import StageRunConfig
from trainer.stage_data import held_out_of
from trainer.train_tokenizer import run_stage

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def read(name: str) -> TrainTokenizerConfig:
    return parse_config(TrainTokenizerConfig, ["--config", str(RECIPES / name)])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("tokenizer_*.yaml")), ids=lambda path: path.stem)
def test_recipe_loads_into_its_own_folder(path: Path) -> None:
    config = read(path.name)
    assert config.output.name == path.stem
    assert config.data.input
    assert config.contrastive.query == "last"


@pytest.mark.parametrize("name", ["tokenizer_seed2.yaml", "tokenizer_released.yaml"])
def test_streamed_recipes_read_few_pairs_before_training(name: str) -> None:
    data = read(name).data
    assert data.shuffle_pairs
    assert data.held_out_limit / data.held_out_fraction <= 50_000


def stream_on_two_ranks(config: TrainTokenizerConfig) -> tuple[int, dict[str, float]]:
    """How often this rank looked for held-out pairs, and its figures."""
    looked, given = 0, dict[str, float]()

    def counted(*arguments: Any) -> list[TrainingPair]:
        nonlocal looked
        looked += 1
        return read_held_out(*arguments)

    def kept(*arguments: Any) -> dict[str, float]:
        given.update(run_stage(*arguments))
        return given

    with patch("jobs.train_tokenizer.read_held_out", counted), patch("jobs.train_tokenizer.run_stage", kept):
        train(config)
    return looked, given


def test_only_the_first_rank_reads_and_judges_held_out_pairs(tmp_path: Path) -> None:
    with tarfile.open(next((RECIPES.parent / "samples" / "pairs").glob("*.tar"))) as source:
        members = [(member, file.read()) for member in source if (file := source.extractfile(member))]
    for name in ("a", "b"):  # each rank needs a shard of its own
        with tarfile.open(tmp_path / f"{name}.tar", "w") as shard:
            for member, content in members:
                shard.addfile(member, BytesIO(content))
    vocabulary = tmp_path / "vocab.txt"
    characters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters]))
    config = TrainTokenizerConfig(
        output=tmp_path / "out", device="cpu", model=MODEL, captions=str(vocabulary),
        contrastive=ContrastiveConfig(embed_dim=8, train_vit=True),
        contrastive_run=StageRunConfig(steps=2, batch_size=2, warmup_steps=1, evaluate_every=1, log_every=1),
        data=PairDataConfig(
            input=(str(tmp_path / "*.tar"),), shuffle_pairs=4, pairs_per_epoch=16, held_out_fraction=0.2,
            held_out_limit=3, preprocess=PreprocessConfig(color="clean"),
        ),
    )  # fmt: skip
    (first_looked, first), (second_looked, second) = run_in_processes(stream_on_two_ranks, 2, config)
    assert (first_looked, second_looked) == (1, 0)
    assert second == {}
    assert "R@mean" in first
    assert json.loads((tmp_path / "out" / "qformer" / "figures.json").read_text()) == first
    lines = [json.loads(line) for line in (tmp_path / "out/qformer/metrics.jsonl").read_text().splitlines()]
    assert [line["replaced_fraction"] for line in lines if "loss" in line] == [0, 0]


def test_a_stopped_stage_writes_no_result_and_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = [f"--model.{name.replace('_', '-')}={value}" for name, value in asdict(MODEL).items()
             if value != getattr(SeedTokenizerConfig(), name)]  # fmt: skip
    arguments = [
        "--output", str(tmp_path), "--device", "cpu", "--captions", "words:400", *model,
        "--data.input", str(RECIPES.parent / "samples" / "pairs" / "*.tar"), "--data.held-out-fraction=0.2",
        "--contrastive.embed-dim", "8", "--contrastive.train-vit", "--contrastive-run.steps", "3",
        "--contrastive-run.batch-size", "2", "--contrastive-run.warmup-steps", "1",
    ]  # fmt: skip
    with monkeypatch.context() as context:
        context.setattr(PairBatches, "batch", stopping(PairBatches.batch))
        assert main(arguments) == EXIT_STOPPED
    assert "stopped after 1 of 3 steps; the same command goes on there" in caplog.text
    assert {path.name for path in (tmp_path / "qformer").iterdir()} == {"checkpoints", "metrics.jsonl"}
    assert main(arguments) == 0
    assert (tmp_path / "qformer" / "figures.json").is_file()


@pytest.fixture
def finished(tmp_path: Path) -> TrainTokenizerConfig:
    """Stage 1 after one step."""
    shutil.copytree(RECIPES.parent / "samples" / "pairs", tmp_path / "pairs")
    config = TrainTokenizerConfig(
        output=tmp_path / "out", device="cpu", model=MODEL, captions="words:400",
        contrastive=ContrastiveConfig(embed_dim=8, train_vit=True, vocab_size=400),
        contrastive_run=StageRunConfig(steps=1, batch_size=2, warmup_steps=0),
        data=PairDataConfig(
            input=(str(tmp_path / "pairs" / "*.tar"),), held_out_fraction=0.2,
            preprocess=PreprocessConfig(color="clean"),
        ),
    )  # fmt: skip
    train(config)
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess": PreprocessConfig()}, "data.preprocess.color was clean, this run has reference"),
        ({"group_pattern": "z+"}, "data.group_pattern was , this run has z+"),
        ({"held_out_fraction": 0.21}, "data.held_out_fraction was 0.2, this run has 0.21"),
    ],
    ids=["color", "group", "held out"],
)
def test_a_stage_does_not_go_on_with_other_pairs(
    change: dict[str, Any], message: str, finished: TrainTokenizerConfig
) -> None:
    train(finished)  # with the same it does
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        train(replace(finished, data=replace(finished.data, **change)))
    assert "\n" not in str(raised.value)
    assert f"delete {finished.output / 'qformer'} to begin anew" in str(raised.value)


def test_a_stage_does_not_go_on_with_other_shards_or_captions(finished: TrainTokenizerConfig) -> None:
    shard = next(Path(finished.data.input[0]).parent.glob("*.tar"))
    before = shard.read_bytes()
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("added.txt"))
    shard.write_bytes(shard.read_bytes() + bytes(tarfile.RECORDSIZE))
    with pytest.raises(ValueError, match=r"step-00000001: data\.shards_sha256 was "):
        train(finished)
    shard.write_bytes(before)
    settings = finished.data.settings(finished.data.shards(), 1)
    pairs, kept = split_pairs(finished.data)
    arguments = finished, PairBatches(pairs, 2, seed=0), held_out_of(kept)
    captions = [pair.caption for pair in pairs]
    run_stage(*arguments, captions, settings)
    with pytest.raises(ValueError, match="step-00000001: vocabulary_sha256 was "):
        run_stage(*arguments, captions[::2], settings)


def stopping(batch: Callable[[PairBatches, int], PairBatch]) -> Callable[[PairBatches, int], PairBatch]:
    """The same batches, but the process is asked to stop in its first step."""

    def stopped(batches: PairBatches, step: int) -> PairBatch:
        os.kill(os.getpid(), signal.SIGTERM)
        return batch(batches, step)

    return stopped


def test_released_has_the_published_quirks_and_the_default_has_none() -> None:
    released, ours = read("tokenizer_released.yaml"), read("tokenizer_seed2.yaml")
    assert released.codebook == RELEASED
    assert ours.codebook == CodebookConfig() != RELEASED
    for run, other in (
        (released.contrastive_run, ours.contrastive_run),
        (released.codebook_run, ours.codebook_run),
    ):
        assert run.schedule == "released" != other.schedule
        assert run.decay_tables
        assert not other.decay_tables
        assert run.max_grad_norm == 0
        assert (run.lr, run.min_lr, run.batch_size) == (other.lr, other.min_lr, other.batch_size)
    assert released.care.kmeans_vectors == released.care.reseed_every == 0
