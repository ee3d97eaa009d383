"""Every kind of parallelism gives the losses of one process, and takes over each other's checkpoints.

All runs share one start of four gloo processes, which costs more than the runs.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.trainer.runs import (
    LAYOUT,
    losses_of,
    metrics_of,
    packed_folder,
    run_alone,
    run_config,
    run_in_processes,
)
from trainer import parallelize
from trainer.checkpoint import CheckpointConfig, complete_checkpoints
from trainer.lora import LoraConfig
from trainer.optimizer import OptimizerConfig
from trainer.parallelize import ParallelConfig, check_divides
from trainer.pipeline_stages import build_stage_models
from trainer.run_config import DataConfig, ModelConfig, TrainConfig
from trainer.stop_signal import StopSignal
from trainer.train import Trainer

NUM_STEPS = 6
MODES: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "replicated": {"replicate": 4, "shard": 1},
    "hsdp, selective checkpointing": {"replicate": 2, "activation_checkpointing": "selective"},
    "fsdp x tensor, full checkpointing": {
        "tensor": 2,
        "activation_checkpointing": "full",
        "keeps_full_gradients": True,
    },
    "1F1B x fsdp": {"pipeline": 2},
    "zero bubble x fsdp": {"pipeline": 2, "stages_per_rank": 2, "schedule": "InterleavedZeroBubble"},
    "interleaved x tensor": {"pipeline": 2, "tensor": 2, "stages_per_rank": 2, "schedule": "Interleaved1F1B"},
    "bf16": {"precision": "bf16"},
}
RESHARDED = ["1F1B x fsdp", "fsdp x tensor, full checkpointing", "replicated"]
"""One run, handed from mode to mode every second step."""
EXPORTED = "interleaved x tensor"
TIED = ModelConfig(preset="test tied")
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.2)
LORA_MODES = {
    "lora, fsdp": ParallelConfig(),
    "lora, zero bubble": ParallelConfig(
        pipeline=2, stages_per_rank=2, schedule="InterleavedZeroBubble", activation_checkpointing="full"
    ),
}
"""Dropout is drawn by row: neither ranks nor the order in which activations are computed again matter."""
ON_EIGHT: dict[str, dict[str, Any]] = {
    "1F1B x fsdp x tensor": {"pipeline": 2, "tensor": 2},
    "zero bubble x fsdp x tensor": {
        "pipeline": 2,
        "tensor": 2,
        "stages_per_rank": 2,
        "schedule": "InterleavedZeroBubble",
    },
    "hsdp x tensor": {"replicate": 2, "tensor": 2},
    "V x hsdp": {"pipeline": 2, "replicate": 2, "stages_per_rank": 2, "schedule": "ZBVZeroBubble"},
    "GPipe x fsdp": {"pipeline": 4, "schedule": "GPipe"},
}


def run_modes(packed: str, output: str) -> dict[str, dict[str, list[float]]]:
    """In each of four processes: every mode from the start, then one run through several of them."""
    for name, fields in MODES.items():
        parallel = ParallelConfig(**fields)
        run_alone(three_steps(packed, output, name, parallel=parallel, exports_model=name == EXPORTED))
    run_alone(three_steps(packed, output, "tied, fsdp", model=TIED))
    for name, parallel in LORA_MODES.items():
        run_alone(three_steps(packed, output, name, lora=LORA, parallel=parallel))
    for index, name in enumerate(RESHARDED):
        run_until(handed_on(packed, output, name), 2 * index + 2)
    return {}


def three_steps(packed: str, output: str, name: str, **changes: Any) -> TrainConfig:
    """A run whose last step is also one of those that save in the background."""
    checkpoint = CheckpointConfig(every_steps=3)
    return run_config(Path(packed), Path(output) / name, num_steps=3, checkpoint=checkpoint, **changes)


def handed_on(packed: str, output: str, mode: str) -> TrainConfig:
    parallel = ParallelConfig(**MODES[mode])
    return run_config(Path(packed), Path(output) / "handed on", num_steps=NUM_STEPS, parallel=parallel)


def run_until(config: TrainConfig, last: int) -> None:
    """Steps of the same curve up to ``last``, as a run that is asked to stop in each of them."""
    for _ in range(2):
        stop = StopSignal()
        stop.is_set = True
        result = Trainer(config, torch.device("cpu"), stop).run()
    assert result.step == last


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    packed = packed_folder(folder / "packed")
    run_alone(three_steps(str(packed), str(folder), "alone", exports_model=True))
    run_alone(run_config(packed, folder / "alone for longer", num_steps=NUM_STEPS))
    run_in_processes(run_modes, 4, str(packed), str(folder))
    return folder


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "bf16"])
def test_losses_equal_those_of_one_process(runs: Path, mode: str) -> None:
    alone, parallel = (run_config(runs / "packed", runs / name) for name in ("alone", mode))
    assert losses_of(parallel) == pytest.approx(losses_of(alone), abs=1e-6)
    norms = [[record["grad_norm"] for record in metrics_of(config)] for config in (alone, parallel)]
    assert norms[1] == pytest.approx(norms[0], rel=2e-5)
    assert len(norms[1]) == 3


@pytest.mark.parametrize("mode", LORA_MODES)
def test_dropout_is_the_same_on_any_ranks(runs: Path, mode: str, tmp_path: Path) -> None:
    alone = three_steps(str(runs / "packed"), str(tmp_path), "alone", lora=LORA)
    run_alone(alone)
    assert losses_of(replace(alone, output=str(runs / mode))) == pytest.approx(losses_of(alone), abs=1e-6)
    without = replace(alone, output=str(tmp_path / "without"), lora=replace(LORA, dropout=0.0))
    run_alone(without)
    assert abs(losses_of(without)[0] - losses_of(alone)[0]) < 1e-6  # adapters start at zero
    assert abs(losses_of(without)[-1] - losses_of(alone)[-1]) > 1e-4


def muon_and_fp8(packed: str, output: str, prefix: str, modes: dict[str, ParallelConfig]) -> None:
    """Each mode with Muon, and each in fp8, which the CPU computes too."""
    parallelize.has_fp8 = lambda: True
    muon = OptimizerConfig(kind="muon", learning_rate=1e-2, muon_learning_rate=1e-2, warmup_steps=2)
    for name, parallel in modes.items():
        run_alone(three_steps(packed, output, f"{prefix}, muon, {name}", optimizer=muon, parallel=parallel))
        in_fp8 = replace(parallel, is_fp8=True)
        run_alone(three_steps(packed, output, f"{prefix}, fp8, {name}", parallel=in_fp8))


@pytest.mark.slow
def test_muon_and_fp8_are_the_same_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon orthogonalises in bf16, so that its losses agree less closely."""
    pytest.importorskip("torchao")
    monkeypatch.setattr(parallelize, "has_fp8", parallelize.has_fp8)  # put back what follows
    packed = packed_folder(tmp_path / "packed")
    modes = {"fsdp": ParallelConfig(), "tensor": ParallelConfig(tensor=2)}
    muon_and_fp8(str(packed), str(tmp_path), "one", {"whole": ParallelConfig()})
    run_in_processes(muon_and_fp8, 2, str(packed), str(tmp_path), "two", modes)
    for kind, mode in product(("muon", "fp8"), modes):
        one, two = (
            run_config(packed, tmp_path / f"{n}, {kind}, {m}") for n, m in (("one", "whole"), ("two", mode))
        )
        assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-5), (kind, mode)
        assert len(losses_of(two)) == 3


def run_on_eight(packed: str, output: str) -> None:
    for name, fields in ON_EIGHT.items():
        data = DataConfig(packed=packed, global_batch=16)
        run_alone(three_steps(packed, output, name, parallel=ParallelConfig(**fields), data=data))


@pytest.mark.slow
def test_three_kinds_at_once_equal_one_process(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path / "packed")
    data = DataConfig(packed=str(packed), global_batch=16)
    alone = three_steps(str(packed), str(tmp_path), "alone", data=data)
    run_alone(alone)
    run_in_processes(run_on_eight, 8, str(packed), str(tmp_path))
    for name in ON_EIGHT:
        losses = losses_of(replace(alone, output=str(tmp_path / name)))
        assert losses == pytest.approx(losses_of(alone), abs=1e-5), name
        assert len(losses) == 3


def test_tied_tables_stay_tied(runs: Path) -> None:
    alone = three_steps(str(runs / "packed"), str(runs), "tied, alone", model=TIED)
    run_alone(alone)
    parallel = replace(alone, output=str(runs / "tied, fsdp"))
    assert losses_of(parallel) == pytest.approx(losses_of(alone), abs=1e-6)
    assert losses_of(alone) != losses_of(replace(alone, output=str(runs / "alone")))
    for field in ("tensor", "pipeline"):
        with pytest.raises(ValueError, match="tied embeddings cannot be split"):
            config = TIED.shape(LAYOUT)
            parallel_config = ParallelConfig(**{field: 2})
            check_divides(config, parallel_config, 96)
            build_stage_models(config, parallel_config, 0)


def test_bf16_is_close(runs: Path) -> None:
    alone, parallel = (run_config(runs / "packed", runs / name) for name in ("alone", "bf16"))
    assert losses_of(parallel) == pytest.approx(losses_of(alone), abs=5e-3)
    assert losses_of(parallel) != losses_of(alone)


def test_run_handed_from_mode_to_mode_keeps_its_losses(runs: Path) -> None:
    alone = run_config(runs / "packed", runs / "alone for longer")
    handed = run_config(runs / "packed", runs / "handed on")
    assert losses_of(handed) == pytest.approx(losses_of(alone), abs=1e-6)
    assert len(losses_of(handed)) == NUM_STEPS


def test_one_process_goes_on_from_four(runs: Path) -> None:
    """The last checkpoint of the four, longer: the curve beyond is that of a run that was always alone."""
    first = replace(run_config(runs / "packed", runs / "fsdp"), num_steps=5)
    assert complete_checkpoints(runs / "fsdp" / "checkpoints")[-1].name == "step-00000003"
    run_alone(first)
    alone = replace(run_config(runs / "packed", runs / "alone"), num_steps=5)
    run_alone(alone)
    assert losses_of(first) == pytest.approx(losses_of(alone), abs=1e-6)
    assert not dist.is_initialized()


def test_stages_and_shards_export_one_model(runs: Path) -> None:
    """Names, shapes and, up to rounding, values of the folder that one process exported."""
    alone, parallel = (load_file(runs / name / "model" / "model.safetensors") for name in ("alone", EXPORTED))
    assert alone.keys() == parallel.keys()
    for name, value in alone.items():
        assert value.shape == parallel[name].shape
        assert (value.float() - parallel[name].float()).abs().max() < 1e-2, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicate": 3}, "does not make the 4 processes"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"activation_checkpointing": "some"}, "activation_checkpointing must be one of"),
        ({"tensor": 0}, "tensor must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**fields).shard_ranks(world_size=4)


def test_fp8_without_its_hardware_is_refused(tmp_path: Path) -> None:
    packed = packed_folder(tmp_path / "packed")
    config = run_config(packed, tmp_path / "run", parallel=ParallelConfig(is_fp8=True))
    with pytest.raises(ValueError, match=r"parallel\.is_fp8 needs"):
        run_alone(config)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_compiled_layers_give_the_same_losses(checkpointing: str, tmp_path: Path) -> None:
    packed = packed_folder(tmp_path / "packed")
    eager = run_config(packed, tmp_path / "eager", num_steps=3)
    parallel = ParallelConfig(is_compiled=True, activation_checkpointing=checkpointing)
    compiled = run_config(packed, tmp_path / "compiled", num_steps=3, parallel=parallel)
    run_alone(eager)
    run_alone(compiled)
    assert losses_of(compiled) == pytest.approx(losses_of(eager), abs=1e-5)
