"""The losses of a run, drawn as an SVG without any plotting library."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from trainer.metrics import read_metrics

WIDTH, HEIGHT, MARGIN = 720, 360, 48
COLORS = {"loss_text": "#1f6feb", "loss_image": "#d1242f", "loss": "#57606a"}
NAMES = {"loss_text": "text ids", "loss_image": "image ids", "loss": "all"}
SMOOTHING = 0.7
"""Share of the past in the running mean that is drawn over the raw values."""


def draw_losses(metrics: Path, picture: Path) -> None:
    """Draw text, image and total loss over steps.

    Args:
        metrics: ``metrics.jsonl`` of a run.
        picture: SVG to write.

    Raises:
        ValueError: when there are no two records to draw a line through.
    """
    records = [record for record in read_metrics(metrics) if "loss" in record]
    if len(records) < 2:
        raise ValueError(f"{metrics} holds {len(records)} records of losses, a curve needs two")
    present = [name for name in COLORS if all(name in record for record in records)]
    steps = [record["step"] for record in records]
    values = [record[name] for record in records for name in present]
    frame = _Frame(min(steps), max(steps), min(values), max(values))
    parts = [frame.axes()]
    for index, name in enumerate(present):
        points = list(zip(steps, [record[name] for record in records], strict=True))
        parts.append(frame.line(points, COLORS[name], 'stroke-opacity="0.3"'))
        parts.append(frame.line(_smoothed(points), COLORS[name], 'stroke-width="2"'))
        label = f"{NAMES[name]} {points[0][1]:.2f} to {points[-1][1]:.2f}"
        parts.append(_text(WIDTH - MARGIN, MARGIN + 16 * index, label, COLORS[name], "end"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    back = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    picture.write_text("\n".join([head, back, *parts, "</svg>"]) + "\n", encoding="utf-8")


class _Frame:
    """From steps and losses to places in the picture."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self.first, self.last = first, last
        self.low, self.high = low, max(high, low + 1e-6)

    def place(self, step: float, loss: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (step - self.first) / (self.last - self.first)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (loss - self.low) / (self.high - self.low)
        return x, y

    def line(self, points: Sequence[tuple[float, float]], color: str, style: str) -> str:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        return f'<polyline fill="none" stroke="{color}" {style} points="{places}"/>'

    def axes(self) -> str:
        left, bottom = self.place(self.first, self.low)
        right, top = self.place(self.last, self.high)
        parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#8c959f"/>']
        for share in (0.0, 0.5, 1.0):
            loss = self.low + share * (self.high - self.low)
            step = self.first + share * (self.last - self.first)
            parts.append(
                _text(left - 6, self.place(self.first, loss)[1] + 4, f"{loss:.2f}", "#57606a", "end")
            )
            parts.append(
                _text(self.place(step, self.low)[0], bottom + 18, f"{step:.0f}", "#57606a", "middle")
            )
        parts.append(_text((left + right) / 2, bottom + 36, "step", "#57606a", "middle"))
        return "\n".join(parts)


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    mean = points[0][1]
    result = []
    for step, value in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        result.append((step, mean))
    return result


def _text(x: float, y: float, text: str, color: str, anchor: str) -> str:
    style = f'font-size="12" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
