"""Axes of charts: round, in order, and around all values."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.html_page import Html, markup, table
from schemas.html_style import NUM_SERIES_COLOURS, STYLE
from schemas.svg_chart import DIGIT_WIDTH, LEFT, Series, line_chart, number_text, smoothed, spread, ticks

NUMBERS = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(NUMBERS, NUMBERS)
def test_ticks_surround_the_values(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    found = ticks(low, high)
    span = found[-1] - found[0]
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= high - 1e-6 * span
    assert 2 <= len(found) <= 8
    assert all(a < b for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, "0.0 0.2 0.4 0.6 0.8 1.0"),
        (3.6, 9.2, "2 4 6 8 10"),
        (0, 2e-3, "0.0000 0.0005 0.0010 0.0015 0.0020"),
        (0, 1200, "0 250 500 750 1,000 1,250"),
        (0, 8e6, "0 2M 4M 6M 8M"),
        (5, 5, "5.0 5.1 5.2 5.3 5.4 5.5"),
    ],
)
def test_ticks_are_round(low: float, high: float, texts: str) -> None:
    found = ticks(low, high)
    assert " ".join(number_text(tick, found[1] - found[0]) for tick in found) == texts


def x_labels(chart: str) -> list[tuple[float, float, str]]:
    """(left, right, text) of each label below the x axis, in the largest text there is."""
    found = re.findall(r'<text x="([\d.]+)" y="234" text-anchor="(\w+)">([^<]*)</text>', chart)
    shares = {"start": 0.0, "middle": 0.5, "end": 1.0}
    labels = []
    for x, anchor, text in found:
        left = float(x) - shares[anchor] * DIGIT_WIDTH * len(text)
        labels.append((left, left + DIGIT_WIDTH * len(text), text))
    return labels


@pytest.mark.parametrize("end", [11, 15, 20, 23, 60, 137, 5_000, 12_345, 100_000, 900_000, 3_000_000])
@pytest.mark.parametrize("begin", [0, 1, 10])
def test_labels_of_steps_are_whole_and_apart(begin: int, end: int) -> None:
    """Also from the lowest label of y, which ends eight units left of the axis."""
    chart = line_chart("t", [Series("loss", [begin, end], [9.0, 2.0])], x_label="step", y_label="nats")
    labels = x_labels(chart)
    assert len(labels) >= 2
    assert all("." not in text or text.endswith("M") for _, _, text in labels)
    assert labels[0][0] >= LEFT - 4
    assert labels[-1][1] <= 560
    assert all(one[1] + 4 <= other[0] for one, other in pairwise(labels))


@given(st.integers(1, 5000), st.integers(2, 300))
def test_spread_keeps_both_ends(number: int, most: int) -> None:
    picked = spread(number, most)
    assert picked[0] == 0
    assert picked[-1] == number - 1
    assert len(set(picked)) == len(picked) == min(number, most)


def test_running_mean_of_a_constant_is_the_constant() -> None:
    assert smoothed([2.0] * 5, 0.7) == pytest.approx([2.0] * 5)
    assert math.isclose(smoothed([0.0, 1.0], 0.75)[1], 0.25)


def test_only_markup_is_taken_as_markup() -> None:
    assert markup("<b>") == "&lt;b&gt;"
    assert markup(Html("<b>")) == "<b>"
    assert "<td>&lt;i&gt;</td>" in table(["head"], [["<i>"]])


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#\w{6});", block))
    for ground in ("page", "card", "wash"):
        assert contrast(colours["ink"], colours[ground]) >= 7, ground
    for ground in ("page", "card"):
        for text in ("soft", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["mark"], colours["wash"]) >= 4.5
    for series in range(NUM_SERIES_COLOURS):
        assert contrast(colours[f"s{series}"], colours["card"]) >= 3, series
