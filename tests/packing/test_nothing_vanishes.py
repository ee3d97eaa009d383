"""Any document through any template: all its images and texts come out, or it is refused with a reason."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing.chat import ChatStyle
from pipeline.packing.draws import DocumentDraws
from pipeline.packing.render import Piece, render
from pipeline.packing.templates import TEMPLATES, DocumentRefusedError
from schemas.document import Document, ImageSegment, Role, Segment, TextSegment
from tests.packing.test_templates import BPE, SENTENCEPIECE, image

IMAGES = [image(seed) for seed in range(8)]
BLANKS = ["", " ", "\n\t", "\u3000", "\xa0\u2028"]
ODD = [
    "...",
    "\u200b",
    "\x00",
    "\ufeff",
    "e\u0301",
    "👩‍👩‍👧",
    "\u202eabc",
    "<img>",
    "</s>",
    "ASSISTANT:",
    "{caption}",
    "\U0010ffff",
]
METADATA = [
    None,
    "",
    "null",
    "[]",
    "{",
    '{"top": 5}',
    '{"top": ""}',
    '{"top": "A cat."}',
    r'{"top": "half \ud800 of one"}',
    '{"top": ' + "9" * 5000 + "}",
    "[" * 100_000,
]
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("pair", {}),
    ("pair", {"learn": "second"}),
    ("pair", {"caption_field": "top"}),
    ("interleaved", {"max_images": None, "reverse_ratio": 0.5}),
    ("video", {"num_frames": 8}),
    ("text", {}),
    ("chat", {}),
    ("chat", {"style": ChatStyle.LLAMA2, "system_message": "Be kind.", "eos_after_answers": True}),
    ("question", {}),
    ("edit", {}),
    ("edit", {"form": "plain"}),
    ("instruct_pair", {}),
    ("stylised", {}),
    ("blend", {}),
    ("compose", {}),
    ("in_context", {}),
]
"""Those settings that ask for no cut."""

SHAPES = [
    [True],
    [True, False],
    [True, False, True],
    [True] * 3,
    [True, True, False, True],
    [True, True, False, False],
]
"""Is it an image? Of documents that templates take, which are seldom drawn."""

texts = st.sampled_from(BLANKS) | st.sampled_from(ODD) | st.text(st.characters(codec="utf-8"), max_size=5)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Up to 7 segments, all with roles or none; texts that can be told apart, or are odd, or blank."""
    has_roles, segments = draw(st.booleans()), list[Segment]()
    for place, is_image in enumerate(draw(st.sampled_from(SHAPES) | st.lists(st.booleans(), max_size=7))):
        role = draw(st.sampled_from(Role)) if has_roles else None
        if is_image:
            segments.append(ImageSegment(IMAGES[place].codes, role))
        else:
            text = draw(texts)
            segments.append(TextSegment(text + draw(st.sampled_from(["", f" word{place}."])), role))
    return Document("key", tuple(segments), draw(st.sampled_from(METADATA)))


def apply(document: Document, name: str, changes: dict[str, Any], seed: int) -> list[Piece] | str:
    """Pieces, or the reason."""
    function, settings_class = TEMPLATES[name]
    try:
        return function(document, settings_class(**changes), DocumentDraws(seed))
    except DocumentRefusedError as refusal:
        return refusal.reason.value


def wanted(document: Document, name: str) -> list[Segment]:
    """What has to come out: of a chat all but a last question, which nobody answers."""
    segments = list(document.segments)
    if name in ("chat", "question"):
        answers = [place for place, segment in enumerate(segments) if segment.role == Role.ASSISTANT]
        segments = [
            segment
            for place, segment in enumerate(segments)
            if segment.role == Role.SYSTEM or place <= max(answers)
        ]
    return segments


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
@given(document=documents(), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=300)
def test_all_of_a_document_comes_out_or_it_is_refused(
    name: str, changes: dict[str, Any], document: Document, seed: int
) -> None:
    result = apply(document, name, changes, seed)
    others = [apply(document, name, changes, seed + number) for number in range(4)]
    if isinstance(result, str):
        assert others == [result] * 4, "whether it is refused depends on what it draws"
        return
    assert not any(isinstance(other, str) for other in others)
    parts = wanted(document, name)
    images = [part.codes.tobytes() for part in parts if isinstance(part, ImageSegment)]
    contents = [piece.content for piece in result if piece.content is not None]
    assert Counter(part.tobytes() for part in contents if not isinstance(part, str)) == Counter(images)
    written = "".join(part for part in contents if isinstance(part, str))
    if "caption_field" not in changes:  # which replaces the texts
        for part in parts:
            if isinstance(part, TextSegment):
                assert part.text.strip().rstrip(".") in written
    for tokenizer in (BPE, SENTENCEPIECE):
        ids, _ = render([result], tokenizer, tokenizer.layout).document(0)
        assert (ids == tokenizer.layout.img_start_id).sum() == len(images)


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
@pytest.mark.parametrize("role", [None, *Role])
def test_ten_thousand_images(name: str, changes: dict[str, Any], role: Role | None) -> None:
    document = Document("key", (ImageSegment(IMAGES[0].codes, role),) * 10_000)
    result = apply(document, name, changes, 0)
    if name != "interleaved":
        assert isinstance(result, str)
        return
    assert len(result) == 10_000
