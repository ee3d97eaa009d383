"""Chats, questions and answers, and image edits: documents whose segments carry roles.

Four forms, told by their fields, as WebDataset (``key.json`` and image members), JSON lines or a JSON array:

- ``messages``, the chat form of Hugging Face: ``{"role", "content"}``, where content is a string or a list of
  parts ``{"type": "text", "text"}`` and ``{"type": "image", "image" or "url" or "path"}``. An image part that
  names nothing takes the next entry of the sample's own ``images``. OpenAI's ``{"type": "image_url",
  "image_url": {"url"}}`` is such a part too, and must name its picture.
- ``conversations``, the form of LLaVA: see `conversations`.
- ``image``, ``question``, ``answer``: the user shows the image and asks, the assistant answers.
- ``source_image``, ``instruction``, ``target_image``: the user shows and instructs, the assistant draws.
  The names of InstructPix2Pix (``original_image``, ``edit_prompt``, ``edited_image``) and MagicBrush
  (``source_img``, ``target_img``) are known too.

Consecutive parts of one role stay segments of their own. Nothing is left out: a chat that lacks one image or
one text is refused whole, because an answer without what it speaks of teaches the wrong thing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sources.captions import OnBadEncoding
from pipeline.sources.chat_pictures import ChatPictures, FindImage
from pipeline.sources.conversations import read_conversation
from pipeline.sources.document_text import clean_text
from pipeline.sources.each_sample import parse_json_member, read_each
from pipeline.sources.metadata import dump_fields
from pipeline.sources.records import RawDocument, RawImage, RawSegment, SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.document import Role, TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError

_EDIT_NAMES = (
    ("source_image", "original_image", "source_img", "input_image"),
    ("instruction", "edit_prompt", "edit_instruction"),
    ("target_image", "edited_image", "target_img", "output_image"),
)
_REFERENCE_NAMES = ("image", "url", "path")


@dataclass(frozen=True, kw_only=True)
class ChatsConfig:
    """How a sample becomes a chat."""

    on_bad_encoding: OnBadEncoding = "quarantine"
    """What to do with text that is not UTF-8 or holds NUL: refuse the chat, or put U+FFFD."""
    max_document_bytes: int = 256 * 1024**2
    """A larger .json or line is refused (metadata_too_large)."""
    metadata_fields: tuple[str, ...] = ("source", "category", "license", "url")
    """Fields of the JSON that are kept; "*" keeps all but the content."""

    def __post_init__(self) -> None:
        if self.max_document_bytes <= 0:
            raise ValueError(f"--chats.max-document-bytes must be positive, got {self.max_document_bytes}")
        if self.on_bad_encoding not in ("quarantine", "replace"):
            raise ValueError(
                f"--chats.on-bad-encoding must be quarantine or replace, got {self.on_bad_encoding!r}"
            )


def read_chats(
    samples: Iterable[TarSample | QuarantineRecord],
    source: str,
    config: ChatsConfig | None = None,
    find_elsewhere: FindImage | None = None,
) -> SourceItems:
    """One document or one ``sample`` record for each sample, in order; a note for each image member that no
    part shows.

    Args:
        samples: of one shard, or of `json_lines` or `json_array`; records among them are passed on.
        source: name of the shard in the records.
        config: the settings.
        find_elsewhere: finds images that are no members of the sample, for JSON lines.
    """
    config = config or ChatsConfig()

    def read(sample: TarSample) -> SourceItems:
        pictures = ChatPictures(sample, find_elsewhere)
        document = _read_chat(sample, config, pictures)
        yield from pictures.unshown(source)
        yield document

    return read_each(samples, source, read)


def _read_chat(sample: TarSample, config: ChatsConfig, pictures: ChatPictures) -> RawDocument:
    value = parse_json_member(sample, config.max_document_bytes, "chats")
    segments: list[RawSegment] = []
    for role, content in _turns(value, pictures):
        if isinstance(content, RawImage):
            segments.append(RawImage(content.data, content.suffix, role))
        elif content.strip():
            segments.append(TextSegment(clean_text(content, config.on_bad_encoding, "chats"), role))
    _check_turns(segments)
    metadata = {name: entry for name, entry in value.items() if name not in CONTENT_FIELDS}
    text = dump_fields(metadata, config.metadata_fields)
    return RawDocument(sample.key, tuple(segments), text, sample.num_bytes)


CONTENT_FIELDS = frozenset(
    {"messages", "conversations", "images", "image", "question", "answer"}
    | {name for names in _EDIT_NAMES for name in names}
)
"""What a chat is made of; any other field may be kept as metadata."""
_Turn = tuple[Role, str | RawImage]


def _turns(value: Mapping[str, Any], pictures: ChatPictures) -> Iterator[_Turn]:
    if "messages" in value:
        yield from _messages(value, pictures)
        return
    if "conversations" in value:
        yield from read_conversation(value, pictures)
        return
    source, instruction, target = (_first_of(value, names) for names in _EDIT_NAMES)
    if source is not None and target is not None:
        yield Role.USER, pictures.find(source)
        yield Role.USER, _string(instruction, "instruction")
        yield Role.ASSISTANT, pictures.find(target)
    elif "question" in value:
        for name in pictures.listed(_first_of(value, ("image", "images"))):
            yield Role.USER, pictures.find(name)
        yield Role.USER, _string(value["question"], "question")
        yield Role.ASSISTANT, _string(value.get("answer"), "answer")
    else:
        raise RefusedError(
            Reason.DOC_SCHEMA_ERROR,
            "neither 'messages', nor 'conversations', nor 'image', 'question', 'answer', nor source and"
            f" target images and an 'instruction'; fields: {', '.join(value)}"[:240],
        )


def _first_of(value: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, f"the {what} is no string but {str(value)[:40]}")
    return value


def _messages(value: Mapping[str, Any], pictures: ChatPictures) -> Iterator[_Turn]:
    messages, images = value["messages"], value.get("images") or []
    if not isinstance(messages, list) or not isinstance(images, list):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, "'messages' and 'images' must be lists")
    unnamed, num_images = iter(pictures.listed(images)), 0
    for position, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in list(Role):
            raise RefusedError(
                Reason.DOC_SCHEMA_ERROR, f"message {position}: role {str(role)[:40]!r}, not {', '.join(Role)}"
            )
        for part in _parts(message.get("content"), position):
            content = _part(part, unnamed, pictures)
            num_images += isinstance(content, RawImage)
            yield Role(role), content
    if num_images < len(images):
        raise RefusedError(
            Reason.DOC_SCHEMA_ERROR,
            f"{len(images)} images, but {num_images} parts with an image (in 'messages', <image> is text)",
        )


def _parts(content: Any, position: int) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RefusedError(
            Reason.DOC_SCHEMA_ERROR, f"message {position}: content is neither a string nor a list of parts"
        )
    return content


def _part(part: Mapping[str, Any], unnamed: Iterator[Any], pictures: ChatPictures) -> str | RawImage:
    if part.get("type") == "text":
        return _string(part.get("text"), "text of a part")
    if part.get("type") == "image":
        name = _first_of(part, _REFERENCE_NAMES)
        name = next(unnamed, None) if name is None else name
        return pictures.find(name)
    if part.get("type") == "image_url":
        reference = part.get("image_url")
        return pictures.find(reference.get("url") if isinstance(reference, dict) else reference)
    raise RefusedError(
        Reason.DOC_SCHEMA_ERROR,
        f"a part of type {str(part.get('type'))[:40]!r}, not text, image, image_url",
    )


def _check_turns(segments: list[RawSegment]) -> None:
    """Raise RefusedError for a chat without anything said by the user and by the assistant."""
    if not segments:
        raise RefusedError(Reason.DOC_EMPTY, "neither text nor image")
    spoken = {segment.role for segment in segments}
    for role in (Role.USER, Role.ASSISTANT):
        if role not in spoken:
            raise RefusedError(Reason.DOC_SCHEMA_ERROR, f"nothing said by the {role}")
