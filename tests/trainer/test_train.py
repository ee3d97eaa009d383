"""The loop: against an independent one, resumed, divided, stopped, and fed with what overflows."""

import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.distributed.checkpoint import FileSystemWriter

from schemas.packed_folder import PackedFolder
from schemas.packed_order import stored_index
from schemas.vocabulary import VocabularyLayout
from tests.schemas.packed_rows import make_sequences, write_packed
from tests.trainer.runs import LAYOUT, SHAPE, losses_of, metrics_of, packed_folder, run_alone, run_config
from trainer.checkpoint import CheckpointConfig, complete_checkpoints
from trainer.evaluation.language_model import language_losses
from trainer.export import export_checkpoint, load_checkpoint
from trainer.huggingface import export_model
from trainer.llama import Llama
from trainer.load_model import load_model
from trainer.lora import LoraConfig
from trainer.metrics import MetricsConfig, read_metrics
from trainer.non_finite import NonFiniteError
from trainer.optimizer import OptimizerConfig, rate_fraction
from trainer.packed_data import StepData
from trainer.parallelize import ParallelConfig
from trainer.processes import process_group
from trainer.run_config import DataConfig, ModelConfig, TrainConfig
from trainer.stop_signal import StopSignal
from trainer.train import Trainer, TrainResult
from trainer.weights import fill_parameters, random_weights


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_folder(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def whole_run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps without interruption."""
    config = run_config(packed, tmp_path_factory.mktemp("whole"))
    run_alone(config)
    return config


def their_losses(config: TrainConfig, weights: Path) -> list[float]:
    """The run again, with their model, one document at a time, unpacked, and a loop of a few lines."""
    model = transformers.LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        foreach=False,
    )
    folder = PackedFolder(config.data.packed)
    losses = []
    for step in range(config.num_steps):
        rows = [folder[stored_index(step * 8 + i, len(folder), config.seed)] for i in range(8)]
        total, count = torch.zeros(()), 0
        for row in rows:
            for start, end in zip(row.cu_seqlens, row.cu_seqlens[1:], strict=False):
                ids = torch.from_numpy(row.ids[start:end].astype(np.int64))
                is_learned = torch.from_numpy(row.loss_mask[start:end])[1:]
                logits = model(ids[None]).logits[0, :-1][is_learned]
                total = total + F.cross_entropy(logits, ids[1:][is_learned], reduction="sum")
                count += int(is_learned.sum())
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        if step < settings.warmup_steps:
            rate = (step + 1) / settings.warmup_steps
        else:
            turn = math.pi * (step - settings.warmup_steps) / (config.num_steps - settings.warmup_steps)
            rate = settings.final_fraction + (1 - settings.final_fraction) * (1 + math.cos(turn)) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_losses_equal_an_independent_loop(whole_run: TrainConfig, tmp_path: Path) -> None:
    """Their model has no padding rows; ours are outside of the softmax."""
    shape = SHAPE.with_vocabulary(LAYOUT)
    model = Llama(shape)
    fill_parameters(model, random_weights(shape, whole_run.seed))
    export_model(tmp_path, model.named_parameters(), shape, LAYOUT, torch.float32)
    expected = their_losses(whole_run, tmp_path)
    assert losses_of(whole_run) == pytest.approx(expected, abs=2e-5)
    assert losses_of(whole_run)[-1] < losses_of(whole_run)[0] - 0.5


def test_checkpoint_and_export_have_the_same_loss(whole_run: TrainConfig, tmp_path: Path) -> None:
    """Padding rows are trained weights in the one and zeros in the other."""
    checkpoint = complete_checkpoints(Path(whole_run.output) / "checkpoints")[-1]
    export_checkpoint(checkpoint, tmp_path, torch.float32)
    (trained, _), (exported, _) = load_model(checkpoint), load_model(tmp_path)
    folder = PackedFolder(whole_run.data.packed)
    losses = [language_losses(model, folder, 24)["loss"] for model in (trained, exported)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    ids, places = torch.arange(20)[None], torch.arange(20)[None]
    bounds = torch.tensor([[0, 20]], dtype=torch.int32)
    assert exported(ids, places, bounds).shape == (1, 20, LAYOUT.size)


def test_micro_batches_do_not_change_the_loss(whole_run: TrainConfig, tmp_path: Path) -> None:
    config = replace(whole_run, output=str(tmp_path), data=replace(whole_run.data, micro_batch=4))
    run_alone(config)
    assert losses_of(config) == pytest.approx(losses_of(whole_run), abs=1e-5)


def test_resumed_run_is_bit_identical(whole_run: TrainConfig, tmp_path: Path) -> None:
    """A run that is asked to stop in every step, and started again, takes the same eight steps."""
    config = replace(whole_run, output=str(tmp_path), checkpoint=CheckpointConfig(keep=2))
    device = torch.device("cpu")
    for step in range(1, 9):
        stop = StopSignal()
        stop.is_set = True
        with process_group(device):
            result = Trainer(config, device, stop).run()
        assert result == TrainResult(step=step, is_finished=step == 8, first_step=step - 1)
    expected = [(record["loss"], record["grad_norm"]) for record in metrics_of(whole_run)]
    assert [(record["loss"], record["grad_norm"]) for record in metrics_of(config)] == expected
    kept = complete_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-00000007", "step-00000008"]


def test_reports_add_up(whole_run: TrainConfig, packed: Path) -> None:
    """Means by source and by modality are of the same ids as the total."""
    folder = PackedFolder(packed)
    rows = [folder[stored_index(i, len(folder), 0)] for i in range(8)]
    labels = np.concatenate([row.labels for row in rows])
    num_image = int((labels >= LAYOUT.image_code_offset).sum())
    num_text = int((labels >= 0).sum()) - num_image
    first = metrics_of(whole_run)[0]
    both = (first["loss_text"] * num_text + first["loss_image"] * num_image) / (num_text + num_image)
    assert first["loss"] == pytest.approx(both, rel=1e-9)
    low, high = sorted((first["loss/coyo"], first["loss/obelics"]))
    assert low <= first["loss"] <= high
    assert first["padding_fraction"] == pytest.approx(1 - sum(row.num_ids for row in rows) / (8 * 96))


def test_overflow_stops_before_the_step_and_names_the_rows(packed: Path, tmp_path: Path) -> None:
    """An id whose embedding overflows stands in one row only."""
    folder = PackedFolder(packed)
    chosen = 3
    model_folder = tmp_path / "model"
    shape = replace(SHAPE, vocab_size=LAYOUT.padded_size)
    model = Llama(shape)
    fill_parameters(model, random_weights(shape, 0))
    ids_of_row = [set(folder[index].ids[: folder[index].num_ids].tolist()) for index in range(8)]
    only_there = sorted(ids_of_row[chosen] - set().union(*ids_of_row[:chosen], *ids_of_row[chosen + 1 :]))
    assert model.embed_tokens is not None
    model.embed_tokens.weight.data[only_there[0]] = math.inf
    export_model(model_folder, model.named_parameters(), shape, LAYOUT, torch.float32)
    config = run_config(packed, tmp_path / "run", model=ModelConfig(init_from=str(model_folder)))
    with pytest.raises(NonFiniteError) as caught:
        run_alone(config)
    message = str(caught.value)
    assert message.startswith("step 1 was not taken: loss is not finite in sources [")
    assert f"packed-00000.parquet row {chosen} (from tokens/" in message
    assert message.count("packed-00000.parquet") == 1
    assert not complete_checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("is_overflow", [True, False])
def test_a_checkpoint_under_way_is_completed_before_an_error_ends_the_run(
    is_overflow: bool, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overflow or a failing disk in step 6, while the checkpoint of step 5 is being written."""
    take_step, write = Trainer._step, FileSystemWriter.write_data

    def fail(trainer: Trainer, data: StepData) -> Any:
        if trainer.progress.step == 5:
            if not is_overflow:
                raise OSError("the packed shards are gone")
            with torch.no_grad():
                next(trainer._parts.parts[0].parameters()).fill_(math.inf)
        return take_step(trainer, data)

    def write_slowly(*arguments: Any) -> Any:
        time.sleep(1)
        return write(*arguments)

    monkeypatch.setattr(Trainer, "_step", fail)
    monkeypatch.setattr(FileSystemWriter, "write_data", write_slowly)
    config = run_config(packed, tmp_path / "run", checkpoint=CheckpointConfig(every_steps=5))
    with pytest.raises(NonFiniteError if is_overflow else OSError):
        run_alone(config)
    (saved,) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.name == "step-00000005"
    load_checkpoint(saved)


def test_another_data_set_is_refused_on_resume(packed: Path, tmp_path: Path) -> None:
    config = run_config(packed, tmp_path / "run", num_steps=1)
    run_alone(config)
    other = replace(config, num_steps=2, data=DataConfig(packed=str(packed_folder(tmp_path / "other", 10))))
    with pytest.raises(ValueError, match=r"num_rows was 24, this run has 10"):
        run_alone(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, this run has 1"),
        ({"model": ModelConfig(preset="tiny")}, r"model\.width was 32, this run has 128"),
        ({"lora": LoraConfig(rank=4)}, r"lora\.rank was 0, this run has 4"),
        ({"optimizer": OptimizerConfig(kind="muon")}, r"optimizer\.kind was adamw, this run has muon"),
    ],
)
def test_settings_that_change_the_run_are_refused_on_resume(
    changes: dict[str, Any], message: str, packed: Path, tmp_path: Path
) -> None:
    config = run_config(packed, tmp_path / "run", num_steps=1)
    run_alone(config)
    with pytest.raises(ValueError, match=message):
        run_alone(replace(config, num_steps=2, **changes))


def test_a_checkpoint_is_synced_before_it_has_its_name(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, fsync, rename = list[str](), os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        events.append(f"rename {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    run_alone(run_config(packed, tmp_path / "run", num_steps=1))
    named = events.index("rename step-00000001")
    assert {"progress.json", "__0_0.distcp", ".step-00000001.partial"} <= set(events[:named])


def test_another_build_of_as_many_rows_is_refused_on_resume(packed: Path, tmp_path: Path) -> None:
    config = run_config(packed, tmp_path / "run", num_steps=1)
    run_alone(config)
    (tmp_path / "other").mkdir()
    rows = make_sequences(24, 5, LAYOUT)
    write_packed(tmp_path / "other" / "packed-00000.parquet", rows, vocabulary=LAYOUT, mixture="other")
    with pytest.raises(ValueError, match=r"mixture was (cd)+, this run has other"):
        run_alone(replace(config, num_steps=2, data=DataConfig(packed=str(tmp_path / "other"))))


def test_ctrl_c_saves_first_and_interrupts_when_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    clock = iter((100.0, 100.5, 103.0))
    monkeypatch.setattr("trainer.stop_signal.time.monotonic", lambda: next(clock))
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set
        signal.raise_signal(signal.SIGINT)  # what torchrun passes on
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_validation_counts_every_row_once(packed: Path, tmp_path: Path) -> None:
    """Of 10 held-out rows 6 or all, in global batches of 8: not 8, and none twice."""
    held_out = packed_folder(tmp_path / "held_out", 10, seed=9)
    for asked, expected in ((6, 6), (64, 10)):
        data = DataConfig(
            packed=str(packed), global_batch=8, micro_batch=2, validation=str(held_out),
            validation_sequences=asked,
        )  # fmt: skip
        config = run_config(packed, tmp_path / f"run{asked}", data=data)
        stop = StopSignal()
        with process_group(torch.device("cpu")):
            trainer = Trainer(config, torch.device("cpu"), stop)
            folder, counted = PackedFolder(held_out), 0
            table = trainer._validation_losses(folder)
            for row in range(expected):
                counted += int((folder[stored_index(row, 10, 0)].labels >= 0).sum())
        assert table.num_learned == counted


def test_validation_profile_and_export(packed: Path, tmp_path: Path) -> None:
    held_out = packed_folder(tmp_path / "held_out", 16, seed=9)
    data = DataConfig(
        packed=str(packed),
        global_batch=8,
        validation=str(held_out),
        validation_every=2,
        validation_sequences=16,
    )
    metrics = MetricsConfig(every_steps=1, profile_step=2)
    config = run_config(packed, tmp_path / "run", data=data, num_steps=4, exports_model=True, metrics=metrics)
    run_alone(config)
    trace = json.loads((tmp_path / "run" / "trace-2.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    validations = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation/loss" in r]
    assert [record["step"] for record in validations] == [2, 4]
    assert validations[1]["validation/loss"] < validations[0]["validation/loss"]

    exported = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    assert exported.config.vocab_size == LAYOUT.size
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_steps"] == 4


def test_bf16_alone_is_close_and_keeps_fp32_weights(whole_run: TrainConfig, tmp_path: Path) -> None:
    parallel = ParallelConfig(precision="bf16", activation_checkpointing="selective")
    config = replace(whole_run, output=str(tmp_path), parallel=parallel)
    run_alone(config)
    assert losses_of(config) == pytest.approx(losses_of(whole_run), abs=2e-2)
    assert losses_of(config) != losses_of(whole_run)
    model, _, _ = load_checkpoint(complete_checkpoints(tmp_path / "checkpoints")[-1])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(bool((p != p.bfloat16()).any()) for p in model.parameters())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_of_something_else_is_refused(name: str, packed: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"num_attention_heads": 4}\n')
    with pytest.raises(ValueError, match=f"{name} is not a training run's; give another folder"):
        run_alone(run_config(packed, tmp_path, num_steps=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_token_shards_is_refused(packed: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "0000.parquet", "checkpoints/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"its 0000\.parquet \(one of 3\) is not .*; give another"):
        run_alone(run_config(packed, tmp_path, num_steps=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_checkpoints_that_were_copied_go_on(packed: Path, tmp_path: Path) -> None:
    """Also beside what Ray Train has left there before the run could write its configuration."""
    run_alone(run_config(packed, tmp_path / "first", num_steps=1))
    shutil.copytree(tmp_path / "first" / "checkpoints", tmp_path / "second" / "checkpoints")
    (tmp_path / "second" / "ray").mkdir()
    assert run_alone(run_config(packed, tmp_path / "second", num_steps=2)).first_step == 1


def test_another_codebook_is_refused(packed: Path, tmp_path: Path) -> None:
    """Of the held-out rows, and of the model that training begins from."""
    rows = make_sequences(8, 0, LAYOUT)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "packed-00000.parquet"
    write_packed(path, rows, vocabulary=LAYOUT, codebooks={"coyo": "12" * 16})
    data = DataConfig(packed=str(packed), validation=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"data\.validation .* another codebook"):
        run_alone(run_config(packed, tmp_path / "run", data=data))
    run_alone(run_config(packed, tmp_path / "first", num_steps=1, exports_model=True))
    start = ModelConfig(init_from=str(tmp_path / "first" / "model"))
    with pytest.raises(ValueError, match=r"first/model was trained on .* codebook efefefefefef"):
        run_alone(run_config(tmp_path / "other", tmp_path / "run", model=start))


def test_held_out_rows_of_another_vocabulary_are_refused(packed: Path, tmp_path: Path) -> None:
    layout = VocabularyLayout(500)
    (tmp_path / "other").mkdir()
    write_packed(tmp_path / "other" / "packed-00000.parquet", make_sequences(2, 0, layout), vocabulary=layout)
    data = DataConfig(packed=str(packed), validation=str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=r"data\.validation .* vocabulary is VocabularyLayout\(base_size=500\)"
    ):
        run_alone(run_config(packed, tmp_path / "run", data=data))


def test_learning_rate_warms_up_then_falls_to_the_floor() -> None:
    config = OptimizerConfig(warmup_steps=10, final_fraction=0.1)
    curve = [rate_fraction(step, config, 100) for step in range(100)]
    assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert curve[10] == 1.0
    assert curve[55] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(curve[10:]))
    assert rate_fraction(100, config, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sgd"}, "kind must be 'adamw' or 'muon'"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm must be at least 0 \(0: no clipping\), got -1"),
        ({"muon_learning_rate": 0.0}, "muon_learning_rate must be positive"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ],
)
def test_optimizer_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_a_largest_norm_of_0_clips_nothing(packed: Path, tmp_path: Path) -> None:
    losses = []
    for max_norm in (0.0, 1e9):
        config = run_config(packed, tmp_path / str(max_norm))
        config = replace(config, optimizer=replace(config.optimizer, max_grad_norm=max_norm))
        run_alone(config)
        losses.append(losses_of(config))
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.3


def test_muon_trains(packed: Path, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(kind="muon", learning_rate=1e-2, muon_learning_rate=1e-2, warmup_steps=2)
    config = run_config(packed, tmp_path, optimizer=optimizer, checkpoint=CheckpointConfig(every_steps=4))
    run_alone(config)
    losses = losses_of(config)
    assert losses[-1] < losses[0] - 0.3


def test_an_unknown_schedule_is_refused_without_a_pipeline_too(packed: Path, tmp_path: Path) -> None:
    config = run_config(packed, tmp_path, parallel=ParallelConfig(schedule="1G1B"))
    with pytest.raises(ValueError, match=r"parallel\.schedule '1G1B' is unknown"):
        run_alone(config)
