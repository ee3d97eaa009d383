"""Records of a run: flops, files that survive kills."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import CONFIG, bounds, positions, tiny_model
from trainer.metrics import MetricsConfig, MetricsWriter, flops_per_id, log_line, read_metrics


def test_flops_equal_those_that_pytorch_counts() -> None:
    """One document, of which the plain kernel computes the upper half of the scores as well."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model(replace(CONFIG, num_kv_heads=4))
    ids = torch.randint(0, 300, (1, 64))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, positions([64]), bounds([64])).sum().backward()
    assert counter.get_total_flops() == 64 * flops_per_id(model.config, 0, mean_attended=64)


def test_frozen_weights_need_four_operations() -> None:
    frozen = CONFIG.num_projection_parameters
    assert flops_per_id(CONFIG, 0, 10) - flops_per_id(CONFIG, frozen, 10) == 2 * frozen


def test_records_behind_a_checkpoint_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    writer = MetricsWriter(tmp_path, first_step=3, config=MetricsConfig())
    writer.write({"step": 4, "loss": 0.125})
    writer.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(path)] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.125)
    ]  # fmt: skip


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, 0, MetricsConfig(uses_tensorboard=True))
    for step in (1, 2):
        writer.write({"step": step, "loss_image": 3.0 / step})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss_image")] == [(1, 3.0), (2, 1.5)]


def test_the_log_line_is_short() -> None:
    record = {"step": 38, "loss": 5.273266772644894, "loss_text": 5.672517891540084, "loss/pairs": 4.04641630}
    record |= {"learning_rate": 0.0017312752145210155, "ids_per_s": 41_234.996323582839, "mfu": float("nan")}
    expected = "step=38 loss=5.273 text=5.673 loss/pairs=4.046 lr=0.001731 ids/s=41235 mfu=nan"
    assert log_line(record) == expected
