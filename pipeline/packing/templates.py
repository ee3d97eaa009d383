"""Templates: what a document becomes in a language model's eyes, as pure functions to pieces.

They follow the SEED-LLaMA paper and its released recipe (AILab-CVC/SEED, ``torchdata_train.py`` and
``torchdata_sft.py``, read and not copied); ``docs/packing.md`` lists where they differ and why. A template
sees one document, its settings and its draws; documents that do not fit raise ``DocumentRefusedError``
with a reason that the build counts.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pipeline.packing.chat import Turn, chat_pieces
from pipeline.packing.draws import Draws
from pipeline.packing.lone_surrogates import without_lone_surrogates
from pipeline.packing.metadata_filter import read_metadata
from pipeline.packing.render import Piece
from pipeline.packing.segment_runs import images_behind_texts, join_texts, limit_images, strip_text, to_pieces
from pipeline.packing.template_settings import (
    ChatSettings,
    EditSettings,
    InstructPairSettings,
    InterleavedSettings,
    PairSettings,
    PromptedSettings,
    QuestionSettings,
    TextSettings,
    VideoSettings,
)
from schemas.document import Document, ImageSegment, Role, Segment, TextSegment


class Refusal(StrEnum):
    """Why a template refused a document."""

    NO_IMAGE = "template_no_image"
    NO_TEXT = "template_no_text"
    NOT_A_PAIR = "template_not_a_pair"
    NO_ROLES = "template_no_roles"
    NO_ANSWER = "template_no_answer"
    WRONG_SHAPE = "template_wrong_shape"
    MISPLACED_IMAGE = "template_misplaced_image"
    NO_CAPTION_FIELD = "template_no_caption_field"


class DocumentRefusedError(Exception):
    """A document does not fit its template."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


def pair(document: Document, settings: PairSettings, draws: Draws) -> list[Piece]:
    """BOS image caption EOS, or BOS caption image EOS."""
    image, caption = image_and_caption(document, settings.caption_field)
    prompts = settings.prompts
    prompt = prompts[draws.below(len(prompts))] if len(prompts) > 1 else prompts[0]
    text = prompt.replace("{caption}", caption)
    is_first_learned = settings.learn == "all"
    if draws.uniform() < settings.reverse_ratio:
        return [Piece(image.codes, is_first_learned), Piece(text, True)]
    return [Piece(text, is_first_learned), Piece(image.codes, True, is_start_learned=is_first_learned)]


def interleaved(document: Document, settings: InterleavedSettings, draws: Draws) -> list[Piece]:
    """Text and images as they stand, cut after ``max_images``, or every image behind its text."""
    segments = list(document.segments)
    if settings.reverse_ratio and draws.uniform() < settings.reverse_ratio:
        segments = images_behind_texts(segments)
    pieces = to_pieces(limit_images(segments, settings.max_images), True, settings.text_separator)
    if not pieces:
        raise DocumentRefusedError(Refusal.NO_TEXT)
    return pieces


def video(document: Document, settings: VideoSettings, draws: Draws) -> list[Piece]:
    """BOS frames text EOS."""
    frames, texts = document.images, [text for text in document.texts if text.strip()]
    if not frames:
        raise DocumentRefusedError(Refusal.NO_IMAGE)
    if not texts:
        raise DocumentRefusedError(Refusal.NO_TEXT)
    if len(frames) > settings.num_frames:
        step = len(frames) / settings.num_frames
        frames = [frames[int((index + 0.5) * step)] for index in range(settings.num_frames)]
    pieces = [Piece(frame.codes, settings.learn_frames) for frame in frames]
    return [*pieces, Piece(join_texts(texts, settings.text_separator), True)]


def text(document: Document, settings: TextSettings, draws: Draws) -> list[Piece]:
    """BOS text EOS."""
    if document.images:
        raise DocumentRefusedError(Refusal.MISPLACED_IMAGE)
    texts = document.texts
    if not any(map(has_words, texts)):
        raise DocumentRefusedError(Refusal.NO_TEXT)
    return [Piece(join_texts(texts, settings.text_separator), True)]


def chat(document: Document, settings: ChatSettings, draws: Draws) -> list[Piece]:
    """The turns of a document whose segments have roles; what the system says anywhere stands first."""
    system, turns = list[str](), list[Turn]()
    for segment in document.segments:
        if segment.role is None:
            raise DocumentRefusedError(Refusal.NO_ROLES)
        if segment.role == Role.SYSTEM:
            if isinstance(segment, ImageSegment):
                raise DocumentRefusedError(Refusal.MISPLACED_IMAGE)
            if segment.text.strip():
                system.append(segment.text)
        elif turns and turns[-1].role == segment.role:
            turns[-1].segments.append(segment)
        else:
            turns.append(Turn(segment.role, [segment]))
    return speak(turns, settings, join_texts(system, "\n") or None)


def edit(document: Document, settings: EditSettings, draws: Draws) -> list[Piece]:
    """Image, instruction, image, and further instructions and images in turn."""
    segments = document.segments
    kinds = [isinstance(segment, ImageSegment) for segment in segments]
    if len(kinds) < 3 or kinds != [index % 2 == 0 for index in range(len(kinds))] or not kinds[-1]:
        raise DocumentRefusedError(Refusal.WRONG_SHAPE)
    if settings.form == "plain":
        pieces = to_pieces([strip_text(segment) for segment in segments], False, "")
        return [*pieces[:-1], Piece(pieces[-1].content, True)]
    response = TextSegment(choose(settings.responses, draws))
    turns = [Turn(Role.USER, list(segments[:2])), Turn(Role.ASSISTANT, [response, segments[2]])]
    for instruction, target in zip(segments[3::2], segments[4::2], strict=True):
        turns += [Turn(Role.USER, [instruction]), Turn(Role.ASSISTANT, [response, target])]
    return speak(turns, settings)


def instruct_pair(document: Document, settings: InstructPairSettings, draws: Draws) -> list[Piece]:
    """A caption and its image, as a question and its answer."""
    image, caption = image_and_caption(document, None)
    if draws.uniform() < settings.reverse_ratio:
        question: list[Segment] = [image, TextSegment(choose(settings.describe_prompts, draws))]
        return speak([Turn(Role.USER, question), Turn(Role.ASSISTANT, [TextSegment(caption)])], settings)
    number = draws.below(len(settings.draw_prompts))
    asked = settings.draw_prompts[number].replace("{caption}", caption.strip().rstrip("."))
    answer: list[Segment] = [TextSegment(settings.responses[number % len(settings.responses)]), image]
    return speak([Turn(Role.USER, [TextSegment(asked)]), Turn(Role.ASSISTANT, answer)], settings)


def stylised(document: Document, settings: PromptedSettings, draws: Draws) -> list[Piece]:
    """Reference image, caption, target: the caption drawn in the style of the reference."""
    images, instruction = images_and_text(document, num_images=2)
    asked = f"Generate an image of {instruction.rstrip('.')} in the same style."
    return prompted([images[0], TextSegment(asked)], images[1], settings, draws)


def blend(document: Document, settings: PromptedSettings, draws: Draws) -> list[Piece]:
    """Two images and the one that blends them."""
    images = document.images
    if len(images) != 3 or any(map(str.strip, document.texts)):
        raise DocumentRefusedError(Refusal.WRONG_SHAPE)
    return prompted([*images[:2], TextSegment("Please blend the two images.")], images[2], settings, draws)


def compose(document: Document, settings: PromptedSettings, draws: Draws) -> list[Piece]:
    """Image, instruction, target."""
    images, instruction = images_and_text(document, num_images=2)
    return prompted([images[0], TextSegment(instruction)], images[1], settings, draws)


def in_context(document: Document, settings: PromptedSettings, draws: Draws) -> list[Piece]:
    """Two images that are named, an instruction about them, and an image or a text that answers."""
    if not document.segments:
        raise DocumentRefusedError(Refusal.WRONG_SHAPE)
    *segments, target = document.segments
    images = [segment for segment in segments if isinstance(segment, ImageSegment)]
    texts = [
        segment.text for segment in segments if isinstance(segment, TextSegment) and segment.text.strip()
    ]
    if len(images) != 2 or len(texts) != 1:
        raise DocumentRefusedError(Refusal.WRONG_SHAPE)
    second = TextSegment(f"This is the second image. {texts[0].strip()}")
    question: list[Segment] = [images[0], TextSegment("This is the first image."), images[1], second]
    if isinstance(target, TextSegment):
        return speak([Turn(Role.USER, question), Turn(Role.ASSISTANT, [target])], settings)
    return prompted(question, target, settings, draws)


def prompted(
    question: list[Segment], target: ImageSegment, settings: PromptedSettings, draws: Draws
) -> list[Piece]:
    """A question that an image answers, behind a response that is drawn."""
    answer: list[Segment] = [TextSegment(choose(settings.responses, draws)), target]
    return speak([Turn(Role.USER, question), Turn(Role.ASSISTANT, answer)], settings)


def speak(turns: list[Turn], settings: ChatSettings, system: str | None = None) -> list[Piece]:
    """Turns in the words of a chat style."""
    while turns and turns[-1].role == Role.USER:
        turns.pop()  # a question without an answer teaches nothing
    if len(turns) < 2 or turns[0].role != Role.USER:
        raise DocumentRefusedError(Refusal.NO_ANSWER)
    if any(turn.role == Role.ASSISTANT and turn.is_empty for turn in turns):
        raise DocumentRefusedError(Refusal.NO_ANSWER)
    message = settings.system_message if system is None else system
    return chat_pieces(
        turns, settings.style, message, settings.question_suffix, eos_after_answers=settings.eos_after_answers
    )


def image_and_caption(document: Document, caption_field: str | None) -> tuple[ImageSegment, str]:
    """The one image of a pair and its caption."""
    images = document.images
    if not images:
        raise DocumentRefusedError(Refusal.NO_IMAGE)
    texts = document.texts if caption_field is None else [caption_of(document, caption_field)]
    if len(images) != 1 or len(texts) > 1:
        raise DocumentRefusedError(Refusal.NOT_A_PAIR)
    if not texts or not has_words(texts[0]):
        raise DocumentRefusedError(Refusal.NO_TEXT)
    return images[0], texts[0]


def caption_of(document: Document, caption_field: str) -> str:
    """A text field of the metadata."""
    value = read_metadata(document.metadata).get(caption_field)
    if not isinstance(value, str):
        raise DocumentRefusedError(Refusal.NO_CAPTION_FIELD)
    return without_lone_surrogates(value)


def images_and_text(document: Document, num_images: int) -> tuple[list[ImageSegment], str]:
    """Exactly so many images and one text."""
    texts = [text for text in document.texts if text.strip()]
    if len(document.images) != num_images or len(texts) != 1:
        raise DocumentRefusedError(Refusal.WRONG_SHAPE)
    return document.images, texts[0].strip()


def has_words(text: str) -> bool:
    """Whether anything but punctuation and whitespace is in it."""
    return any(one.isalnum() if one.isascii() else not one.isspace() for one in text)


def choose(options: tuple[str, ...], draws: Draws) -> str:
    """One of several, drawn."""
    return options[draws.below(len(options))] if len(options) > 1 else options[0]


Template = Callable[[Document, Any, Draws], list[Piece]]
TEMPLATES: dict[str, tuple[Template, type]] = {
    "pair": (pair, PairSettings),
    "interleaved": (interleaved, InterleavedSettings),
    "video": (video, VideoSettings),
    "text": (text, TextSettings),
    "chat": (chat, ChatSettings),
    "question": (chat, QuestionSettings),
    "edit": (edit, EditSettings),
    "instruct_pair": (instruct_pair, InstructPairSettings),
    "stylised": (stylised, PromptedSettings),
    "blend": (blend, PromptedSettings),
    "compose": (compose, PromptedSettings),
    "in_context": (in_context, PromptedSettings),
}
"""Name in a mixture file: the function and its settings."""
