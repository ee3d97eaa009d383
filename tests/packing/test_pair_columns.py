"""The columnar way of pairs gives, document for document, what the template gives."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing.draws import DocumentDraws, first_uniforms, row_keys
from pipeline.packing.pair_columns import WORDS_PATTERN, is_plain, read_pair_columns, render_pairs
from pipeline.packing.render import render
from pipeline.packing.template_settings import InterleavedSettings, PairSettings
from pipeline.packing.templates import has_words, pair
from schemas.document import Document, TextSegment
from tests.packing.corpus import make_pairs, write_token_shard
from tests.packing.golden_inputs import SAMPLE_TOKENIZER
from tokenizer.text_tokenizer import TextTokenizer

TOKENIZER = TextTokenizer(SAMPLE_TOKENIZER)


@pytest.mark.parametrize("reverse_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("learn", ["all", "second"])
def test_equal_to_the_template(reverse_ratio: float, learn: str, tmp_path: Path) -> None:
    documents = make_pairs(200)
    turned = [Document(one.key, one.segments[::-1]) for one in documents[:50]]
    empty = [Document("empty", (documents[0].segments[0], TextSegment(" . ")))]
    documents = turned + documents[50:] + empty
    path = write_token_shard(tmp_path / "a.parquet", documents)
    settings = PairSettings(reverse_ratio=reverse_ratio, learn=learn)
    keys = row_keys(3, 0, len(documents))
    pairs, counts = read_pair_columns(path, (0,)), Counter[str]()
    assert pairs is not None
    wanted = np.arange(0, len(documents), 2)
    batch, rows = render_pairs(pairs, wanted, keys, settings, TOKENIZER, TOKENIZER.layout, counts)
    assert rows.tolist() == wanted[:-1].tolist(), "the last has no words"
    assert counts == {"refused:template_no_text": 1}
    pieces = [pair(documents[row], settings, DocumentDraws(int(keys[row]))) for row in rows]
    expected = render(pieces, TOKENIZER, TOKENIZER.layout)
    for ours, theirs in zip(batch, expected, strict=True):
        assert np.array_equal(ours, theirs)


@given(text=st.text())
def test_words_are_found_as_the_template_finds_them(text: str) -> None:
    assert pc.match_substring_regex(pa.scalar(text), WORDS_PATTERN).as_py() == has_words(text)


def test_every_character_is_a_word_or_none_for_both() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found = pc.match_substring_regex(pa.array(characters), WORDS_PATTERN).to_pylist()
    assert found == [has_words(character) for character in characters]


def test_first_uniforms_are_those_of_each_document() -> None:
    keys = row_keys(9, 0, 100)
    assert first_uniforms(keys).tolist() == [DocumentDraws(int(key)).uniform() for key in keys]


def test_other_documents_take_the_general_way(tmp_path: Path) -> None:
    documents = make_pairs(5)
    two_texts = Document("two", (*documents[0].segments, TextSegment("again")))
    text_only = Document("text", (TextSegment("a"), TextSegment("b")))
    for odd in (two_texts, text_only):
        assert read_pair_columns(write_token_shard(tmp_path / "a.parquet", [*documents, odd]), (0,)) is None


def test_settings_that_are_handled() -> None:
    assert is_plain(PairSettings())
    assert not is_plain(PairSettings(prompts=("{caption}!",)))
    assert not is_plain(PairSettings(caption_field="alt"))
    assert not is_plain(InterleavedSettings())
