"""Prompts and answers of a model on one picture: what was asked, what was shown, what was drawn or said."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 192
"""Pixels of a picture on the sheet."""
GAP, LINE = 20, 28
FONT_SIZE = 22
"""At half of it, Pillow's font leaves no room between words."""
TEXT_WIDTH = 420
COLUMNS = 2
INK, FAINT, FRAME = "#1f2328", "#656d76", "#d0d7de"


@dataclass(frozen=True)
class Cell:
    """One prompt with its answer; what there is not is None or empty."""

    source: Image.Image | None
    """The picture that was asked for or about."""
    drawn: Image.Image | None
    asked: str
    said: str
    note: str = ""


def contact_sheet(cells: Sequence[Cell]) -> Image.Image:
    """A sheet of cells, two beside each other: source, drawing, texts.

    Raises:
        ValueError: no cells.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one prompt")
    width, height = 3 * GAP + 2 * SIDE + TEXT_WIDTH, SIDE + LINE + GAP
    sheet = Image.new("RGB", (COLUMNS * width + GAP, -(-len(cells) // COLUMNS) * height + GAP), "white")
    for index, cell in enumerate(cells):
        row, column = divmod(index, COLUMNS)
        _draw_cell(sheet, cell, column * width + GAP, row * height + GAP)
    return sheet


def _draw_cell(sheet: Image.Image, cell: Cell, left: int, top: int) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for name, picture, x in (("source", cell.source, left), ("drawn", cell.drawn, left + SIDE + GAP)):
        if picture is not None:
            sheet.paste(_fitted(picture), (x, top))
            pen.rectangle((x - 1, top - 1, x + SIDE, top + SIDE), outline=FRAME)
            pen.text((x, top + SIDE + 2), name, FAINT, font)
    x, y = left + 2 * (SIDE + GAP), top
    for text, colour in ((cell.asked, INK), (cell.said and f"-> {cell.said}", INK), (cell.note, FAINT)):
        for line in _wrapped(text, font):
            pen.text((x, y), line, colour, font)
            y += LINE


def _fitted(picture: Image.Image) -> Image.Image:
    """SIDE x SIDE on white, the shape kept."""
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    small = picture.convert("RGBA").resize((width, height))
    square.alpha_composite(small, tuple((SIDE - length) // 2 for length in small.size))
    return square.convert("RGB")


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines no wider than TEXT_WIDTH; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= TEXT_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
