"""LLaVA's form of a chat: turns of ``from`` and ``value``, and ``<image>`` where the next picture stands."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.sources.chat_pictures import ChatPictures
from pipeline.sources.records import RawImage
from schemas.document import Role
from schemas.quarantine import Reason, RefusedError

PLACEHOLDER = "<image>"
_ROLES = {
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
}


def read_conversation(
    value: Mapping[str, Any], pictures: ChatPictures
) -> Iterator[tuple[Role, str | RawImage]]:
    """What is said and shown, in reading order; white space beside a picture is taken away.

    A conversation whose placeholders are not as many as its pictures is refused, also one without pictures: a
    question about a picture that is not there teaches the wrong thing.

    Raises:
        RefusedError: ``doc_schema_error``, ``doc_image_missing``.
    """
    turns = value["conversations"]
    if not isinstance(turns, list):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, "'conversations' must be a list")
    if value.get("video") is not None:
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, "it speaks of a video: chats show pictures only")
    spoken = [_turn(turn, position) for position, turn in enumerate(turns)]
    listed = value.get("image")
    names = pictures.listed(value.get("images") if listed is None else listed, are_paths=True)
    num_places = sum(text.count(PLACEHOLDER) for _, text in spoken)
    if num_places != len(names):
        raise RefusedError(
            Reason.DOC_SCHEMA_ERROR, f"{len(names)} images, but {num_places} times {PLACEHOLDER}"
        )
    remaining = iter(names)
    for role, text in spoken:
        first, *others = text.split(PLACEHOLDER)
        yield role, first.rstrip() if others else first
        for place, piece in enumerate(others, 1):
            yield role, pictures.find(next(remaining))
            yield role, piece.lstrip() if place == len(others) else piece.strip()


def _turn(turn: Any, position: int) -> tuple[Role, str]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        detail = f"turn {position}: from {str(speaker)[:40]!r}, not {', '.join(_ROLES)}"
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, detail)
    if not isinstance(turn.get("value"), str):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, f"turn {position}: its value is no string")
    return role, turn["value"]
