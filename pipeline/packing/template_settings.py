"""Settings of the templates: one frozen dataclass each, as the mixture file spells them."""

from dataclasses import dataclass
from typing import Literal

from pipeline.packing.chat import ChatStyle


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """An image and its caption, in either order."""

    reverse_ratio: float = 0.5
    """Probability of image, then caption; otherwise caption, then image."""
    prompts: tuple[str, ...] = ("{caption}",)
    """One is drawn and put round the caption."""
    caption_field: str | None = None
    """Take the caption from this field of the metadata instead."""
    learn: Literal["all", "second"] = "all"
    """``second``: only what follows; after a caption not its ``<img>`` either, as the release masks."""

    def __post_init__(self) -> None:
        check_fraction("reverse_ratio", self.reverse_ratio)
        if not self.prompts or any("{caption}" not in prompt for prompt in self.prompts):
            raise ValueError("prompts must each contain {caption}")


@dataclass(frozen=True, kw_only=True)
class InterleavedSettings:
    """A page of text and images in reading order."""

    max_images: int | None = 7
    """Stop after the text behind this many images, or before a further image."""
    reverse_ratio: float = 0.0
    """Probability that in the whole document every image moves behind the text that follows it."""
    text_separator: str = " "
    """Between texts that become neighbours, unless one side has whitespace already."""

    def __post_init__(self) -> None:
        check_fraction("reverse_ratio", self.reverse_ratio)
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images must be at least 1 or null, got {self.max_images}")


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Frames, then text; the frames are not learned."""

    num_frames: int = 4
    """Of more, the middles of equal intervals are taken; fewer are taken as they are."""
    learn_frames: bool = False
    text_separator: str = " "

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Text alone."""

    text_separator: str = "\n\n"


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Turns of user and assistant; only answers are learned."""

    style: ChatStyle = ChatStyle.VICUNA
    system_message: str = ""
    """For documents that bring none of their own."""
    question_suffix: str = ""
    """Written behind every question, for instance what the paper asks of short answers."""
    eos_after_answers: bool = False
    """End every answer with EOS, not the last alone."""


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(ChatSettings):
    """Questions about images with short answers, asked as the paper does."""

    question_suffix: str = " Please provide an accurate answer consisting of only one word or phrase."


@dataclass(frozen=True, kw_only=True)
class EditSettings(ChatSettings):
    """Source image, instruction, target; and so on, if further instructions and targets follow."""

    form: Literal["plain", "chat"] = "chat"
    """``plain``: source, instruction, target in a row, as in pretraining; only the last target is learned."""
    responses: tuple[str, ...] = (
        "Here is the picture.",
        "Here is the edited image.",
        "I have edited the image.",
    )
    """One is drawn for each document; the assistant says it before the target."""


@dataclass(frozen=True, kw_only=True)
class PromptedSettings(ChatSettings):
    """Images and a text become a question that asks for an image, with a prompt of the paper round them."""

    responses: tuple[str, ...] = ("Here is the picture.", "Here is an image.", "I have made this image.")


@dataclass(frozen=True, kw_only=True)
class InstructPairSettings(ChatSettings):
    """A caption and its image as an instruction: to describe, or to draw."""

    reverse_ratio: float = 0.5
    """Probability of describing (image to text); otherwise drawing."""
    describe_prompts: tuple[str, ...] = (
        "Please provide an accurate and concise description of the given image.",
    )
    draw_prompts: tuple[str, ...] = (
        "Please draw {caption}.",
        "Please generate an image of {caption}.",
        "Can you make a picture of {caption}?",
    )
    responses: tuple[str, ...] = ("Here is the picture.", "Here is an image.", "I have made this image.")

    def __post_init__(self) -> None:
        check_fraction("reverse_ratio", self.reverse_ratio)
        if any("{caption}" not in prompt for prompt in self.draw_prompts):
            raise ValueError("draw_prompts must each contain {caption}")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}")
