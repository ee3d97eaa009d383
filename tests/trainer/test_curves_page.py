"""Curves of a run: every metric is drawn, at its place, and nothing of a run becomes markup."""

import json
import re
from pathlib import Path

import pytest

from jobs import curves
from tests.html_reader import ATTACKS, HtmlPage
from trainer.curves_page import render_curves, write_curves


def charts(page: HtmlPage) -> list[str]:
    return [attributes["aria-label"] or "" for _, attributes in page.tags if attributes.get("role") == "img"]


def test_every_metric_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {
            "step": step, "loss": 9 - step, "loss_text": 8 - step, "loss_image": 9.5 - step,
            "loss/a": 7 - step,
            "grad_norm": 1.0, "learning_rate": 1e-3, "ids_per_s": 500.0, "mfu": 0.31, "memory_gib": 2.0,
            "data_wait_fraction": 0.01, "padding_fraction": 0.02, "new/figure": 5.0,
        }
        for step in range(1, 5)
    ]  # fmt: skip
    records.append({"step": 4, "validation/loss": 5.5, "validation/loss/a": 6.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert curves.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "curves.html")
    page = HtmlPage((tmp_path / "curves.html").read_text())
    page.check_needs_nothing_else()
    assert [chart.split(":")[0] for chart in charts(page)] == [
        "Loss", "Loss by source", "Learning rate", "Gradient norm, before clipping", "Speed",
        "Model FLOPs utilisation", "Waiting and padding", "Peak memory", "new/figure",
    ]  # fmt: skip
    assert "text ids 7.00 → 4.00" in page.text
    assert "image ids 8.50 → 5.50" in page.text
    assert "(validation 5.50)" in page.text
    assert "31.0%" in page.text
    assert "all ids, validation 5.5" in page.text, "value under the pointer"


def test_points_stand_where_their_values_are() -> None:
    page = render_curves(
        "run", [{"step": step, "grad_norm": norm} for step, norm in ((0, 0.0), (5, 2.0), (10, 4.0))]
    )
    (line,) = re.findall(r'<polyline class="faint"[^>]*points="([^"]*)"', page)
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y1


def test_hostile_names_and_values() -> None:
    record = {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.0}
    record |= {f"loss/{attack}": 1.0 for attack in ATTACKS} | dict.fromkeys(ATTACKS, 2.0)
    page = HtmlPage(render_curves(ATTACKS[0], [record, record | {"step": 2}], settings=ATTACKS[2]))
    page.check_needs_nothing_else()
    assert "img" not in {tag for tag, _ in page.tags}
    assert all(attack in page.text for attack in ATTACKS)
    assert {"Loss", "Gradient norm, before clipping"}.isdisjoint(charts(page)), "no finite value to draw"


def test_a_run_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 records"):
        write_curves(tmp_path)


def test_stages_of_tokenizer_training() -> None:
    figures = {"loss": 4.8, "lr": 6e-4, "grad_norm": 1.6, "images_s": 12.4, "batch_R@1": 0.02}
    page = HtmlPage(render_curves("qformer", [figures | {"step": step} for step in (20, 40)]))
    assert [chart.split(":")[0] for chart in charts(page)] == [
        "Loss", "Learning rate", "Gradient norm, before clipping", "Speed", "batch_R@1"
    ]  # fmt: skip
    assert "all ids" not in page.text
