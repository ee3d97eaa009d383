"""Segments of a document in a row, on their way to pieces: reordered, cut, joined."""

from pipeline.packing.render import Piece
from schemas.document import ImageSegment, Segment, TextSegment


def images_behind_texts(segments: list[Segment]) -> list[Segment]:
    """Every image changes places with the text that follows it; images before images stay in order."""
    result = list[Segment]()
    position = 0
    while position < len(segments):
        here = segments[position]
        following = segments[position + 1] if position + 1 < len(segments) else None
        if isinstance(here, ImageSegment) and isinstance(following, TextSegment):
            result += [following, here]
            position += 2
        else:
            result.append(here)
            position += 1
    return result


def limit_images(segments: list[Segment], max_images: int | None) -> list[Segment]:
    """All up to the text behind the last allowed image, or up to a further image."""
    if max_images is None:
        return segments
    num_images = 0
    for position, segment in enumerate(segments):
        if isinstance(segment, ImageSegment):
            if num_images == max_images:
                return segments[:position]
            num_images += 1
        elif num_images == max_images:
            return segments[: position + 1]
    return segments


def to_pieces(segments: list[Segment], is_learned: bool, separator: str) -> list[Piece]:
    """Pieces of segments, texts that are neighbours being joined; empty texts vanish."""
    pieces, neighbours = list[Piece](), list[str]()
    for segment in segments:
        if isinstance(segment, TextSegment):
            if segment.text:
                neighbours.append(segment.text)
            continue
        if neighbours:
            pieces.append(Piece(join_texts(neighbours, separator), is_learned))
            neighbours = []
        pieces.append(Piece(segment.codes, is_learned))
    if neighbours:
        pieces.append(Piece(join_texts(neighbours, separator), is_learned))
    return pieces


def join_texts(texts: list[str], separator: str) -> str:
    """Texts in a row, the separator only where neither side has whitespace."""
    joined = texts[0] if texts else ""
    for part in texts[1:]:
        if joined and part and not (joined[-1].isspace() or part[0].isspace()):
            joined += separator
        joined += part
    return joined


def strip_text(segment: Segment) -> Segment:
    """A text without whitespace around it; images as they are."""
    return TextSegment(segment.text.strip(), segment.role) if isinstance(segment, TextSegment) else segment
