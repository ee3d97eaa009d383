"""What an evaluation takes from documents of token shards: captioned images, and questions about images.

Images are codes already, so no image model is needed to judge a language model's reading.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.document import Codes, Document, ImageSegment, Role, TextSegment
from trainer.prompt import Content

IMAGE, QUESTION = "{image}", "{question}"
PLAIN_CAPTION_PROMPT = IMAGE
"""An image alone, as pairs stand in pretraining: what follows is the caption."""
CHAT_CAPTION_PROMPT = (
    "USER: {image} Please provide an accurate and concise description of the given image.\nASSISTANT:"
)
"""For instruction-tuned models, as the template ``instruct_pair`` asks."""


@dataclass(frozen=True)
class CaptionedImage:
    """One image with what people say of it."""

    key: str
    codes: Codes
    references: tuple[str, ...]
    """At least one; the document's own text first."""


@dataclass(frozen=True)
class ImageQuestion:
    """A question about images with the answers of people."""

    key: str
    images: tuple[Codes, ...]
    question: str
    annotators: tuple[str, ...]
    """At least one."""


def captioned_image(document: Document, references_field: str = "") -> CaptionedImage:
    """A pair of a token shard.

    Args:
        document: one image, one text.
        references_field: of its metadata, a list of further captions (COCO has five an image).

    Raises:
        ValueError: other segments, or a field that is no list of strings; names the document.
    """
    if len(document.images) != 1 or len(document.texts) != 1:
        raise ValueError(
            f"document {document.key}: {len(document.images)} images and {len(document.texts)} texts, "
            "expected one of each"
        )
    more = _list_field(document, references_field)
    return CaptionedImage(document.key, document.images[0].codes, (document.texts[0], *more))


def image_question(document: Document, answers_field: str = "") -> ImageQuestion:
    """The first question of a chat: what the user shows and asks, and what the assistant answers.

    Args:
        document: a question-answer sample or chat.
        answers_field: of its metadata, the list of all annotators' answers (VQA v2 has ten); where a document
            lacks it, the assistant's answer stands alone.

    Raises:
        ValueError: no question or no answer in words; names the document.
    """
    roles = [segment.role for segment in document.segments]
    first = roles.index(Role.ASSISTANT) if Role.ASSISTANT in roles else len(roles)
    asked = [segment for segment in document.segments[:first] if segment.role == Role.USER]
    question = " ".join(segment.text.strip() for segment in asked if isinstance(segment, TextSegment))
    answers = [
        part.text.strip() for part in document.segments[first : first + 1] if isinstance(part, TextSegment)
    ]
    if not question or not answers:
        raise ValueError(f"document {document.key}: no question with an answer in words")
    images = tuple(segment.codes for segment in asked if isinstance(segment, ImageSegment))
    annotators = _list_field(document, answers_field) or tuple(answers)
    return ImageQuestion(document.key, images, question, annotators)


def fill_prompt(template: str, images: Sequence[Codes], question: str = "") -> list[Content]:
    """Contents of a prompt; all images stand where ``{image}`` does.

    Raises:
        ValueError: the template does not name ``{image}`` exactly once.
    """
    if template.count(IMAGE) != 1:
        raise ValueError(f"a prompt must hold {IMAGE} once, got {template!r}")
    before, after = (part.replace(QUESTION, question) for part in template.split(IMAGE))
    contents: tuple[Content, ...] = (before, *images, after)
    return [content for content in contents if not isinstance(content, str) or content]


def _list_field(document: Document, name: str) -> tuple[str, ...]:
    if not name:
        return ()
    value = json.loads(document.metadata or "{}").get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"document {document.key}: metadata field {name!r} is no list of strings")
    return tuple(value)
