"""Texts of documents: what is no text is refused, or stands as U+FFFD."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.document_text import clean_text
from schemas.quarantine import RefusedError

ANY_CHARACTER = st.characters(exclude_categories=())


def test_each_character_that_is_no_text_becomes_one_replacement_character() -> None:
    assert clean_text("a\ud83d b\0 \udcffc", "replace", "chats") == "a\ufffd b\ufffd \ufffdc"


@given(st.text(ANY_CHARACTER))
def test_replaced_text_differs_only_where_it_was_no_text(text: str) -> None:
    repaired = clean_text(text, "replace", "chats")
    repaired.encode()  # can be stored
    assert len(repaired) == len(text)
    for before, after in zip(text, repaired, strict=True):
        is_text = before != "\0" and not 0xD800 <= ord(before) <= 0xDFFF
        assert after == (before if is_text else "\ufffd")


@given(st.text(ANY_CHARACTER))
def test_text_is_refused_or_kept_as_it_is(text: str) -> None:
    if clean_text(text, "replace", "chats") == text:
        assert clean_text(text, "quarantine", "chats") == text
    else:
        with pytest.raises(RefusedError, match=f"text of {len(text)} characters"):
            clean_text(text, "quarantine", "chats")
