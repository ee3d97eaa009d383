"""Text of interleaved documents and chats: kept as it was written, refused where it is no text."""

import re
from typing import Literal

from pipeline.sources.captions import OnBadEncoding
from schemas.quarantine import Reason, RefusedError

END_MARKER = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
"""What OBELICS left where its extractor saw one text of a page end and the next begin."""
_UNSOUND = re.compile("[\0\ud800-\udfff]")
"""No text: NUL, and surrogates, which also stand for bytes that are not UTF-8 (``surrogateescape``)."""
OnEndMarker = Literal["break", "keep"]


def clean_text(text: str, on_bad_encoding: OnBadEncoding, section: str) -> str:
    """The text itself, if it can be stored as UTF-8 and holds no NUL.

    Args:
        text: as it was read.
        on_bad_encoding: ``"replace"`` puts U+FFFD for what cannot be stored.
        section: under which the flag of this setting stands, for the detail of a refusal.

    Raises:
        RefusedError: ``caption_bad_encoding``, unless ``on_bad_encoding`` is ``"replace"`` (by U+FFFD).
    """
    if text.isascii() and "\0" not in text:
        return text
    repaired = _UNSOUND.sub("\ufffd", text)
    if on_bad_encoding == "quarantine" and repaired != text:
        kind = "NUL" if "\0" in text else "a lone surrogate or a byte that is not UTF-8"
        detail = (
            f"{kind} in a text of {len(text)} characters; --{section}.on-bad-encoding replace puts U+FFFD"
        )
        raise RefusedError(Reason.CAPTION_BAD_ENCODING, detail)
    return repaired


def split_at_end_marker(text: str, rule: OnEndMarker) -> list[str]:
    """The runs of text in one node: the OBELICS marker is no text but a break, and its two sides two runs.

    Runs of nothing but white space are left out; others keep theirs, except beside a break.
    """
    if rule == "keep" or END_MARKER not in text:
        return [text] if text.strip() else []
    return [run.strip() for run in text.split(END_MARKER) if run.strip()]
