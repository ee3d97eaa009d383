"""Records of a run: flops, files that survive kills, the curve."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import CONFIG, bounds, positions, tiny_model
from trainer.loss_curve import draw_losses
from trainer.metrics import MetricsConfig, MetricsWriter, flops_per_id, read_metrics


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


def test_curve_names_first_and_last_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="holds 0 records"):
        draw_losses(path, tmp_path / "curve.svg")
    records = [{"step": s, "loss": 9 - s, "loss_text": 8 - s, "loss_image": 9.5 - s} for s in range(1, 5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    draw_losses(path, tmp_path / "curve.svg")
    root = ET.parse(tmp_path / "curve.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert "text ids 7.00 to 4.00" in texts
    assert "image ids 8.50 to 5.50" in texts
    assert len(list(root.iter(f"{space}polyline"))) == 6
