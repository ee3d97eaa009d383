"""Captions to ids: cleaning, BERT's layout, every place a vocabulary can come from."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertTokenizer

from tokenizer.caption_tokenizer import (
    CaptionTokenizer,
    clean_caption,
    load_caption_tokenizer,
    word_tokenizer,
)

CAPTIONS = ["A red fish; swimming!", "the man's (blue) hat", "fish and hat", "red hat"] * 3


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ('A "Red" fish: #1 (big)*!', "a red fish 1 big"),
        ("  two   blanks~\n", "two blanks"),
        ("it's t-shirt, ok", "it's t-shirt, ok"),
        (" ".join(["w"] * 60), " ".join(["w"] * 50)),
    ],
)
def test_cleaning(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


def test_layout_is_berts() -> None:
    tokenizer = word_tokenizer(CAPTIONS, 60, max_tokens=6)
    ids, mask = tokenizer.encode(["red hat", "", "a red fish swimming and the man's blue hat"])
    assert ids.shape == mask.shape == (3, 6)
    assert (ids[:, 0] == 2).all()
    assert ids[1].tolist() == [2, 3, 0, 0, 0, 0]
    assert ids[2, -1] == 3
    assert mask.sum(dim=1)[1:].tolist() == [2, 6]
    assert ((ids == 0) == ~mask).all()


def test_vocabulary_is_the_frequent_words_whatever_the_order() -> None:
    tokenizer = word_tokenizer(CAPTIONS, 60)
    assert (
        word_tokenizer(CAPTIONS[::-1], 60).encode(CAPTIONS)[0].tolist()
        == tokenizer.encode(CAPTIONS)[0].tolist()
    )
    (hat, *_), (tah, *_) = (row[1:].tolist() for row in tokenizer.encode(["hat", "tah"])[0])
    assert hat != tah
    assert tokenizer.encode(["hat"])[0].shape == (1, 3)
    assert tokenizer.encode(["tah"])[0].shape == (1, 5)  # spelled
    with pytest.raises(ValueError, match="cannot hold"):
        word_tokenizer(CAPTIONS, 10)


def test_save_and_load_give_the_same_ids(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(CAPTIONS, 60)
    tokenizer.save(tmp_path)
    loaded = load_caption_tokenizer(str(tmp_path))
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(CAPTIONS)[0].tolist() == tokenizer.encode(CAPTIONS)[0].tolist()


def test_vocab_txt_equals_transformers_bert(tmp_path: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "fish",
        "sw",
        "##im",
        "##ming",
        "hat",
        "'",
        "s",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    captions = ["a red fish", "swimming hat", "a hat's fish", "unknown words"]
    bert = BertTokenizer.from_pretrained(str(tmp_path))
    expected = bert(captions, padding=True)["input_ids"]
    assert load_caption_tokenizer(str(tmp_path / "vocab.txt")).encode(captions)[0].tolist() == expected


def test_missing_or_foreign_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none of"):
        load_caption_tokenizer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such caption tokenizer"):
        load_caption_tokenizer(str(tmp_path / "no.json"))
    with pytest.raises(ValueError, match="not BERT's layout"):
        CaptionTokenizer(Tokenizer(WordLevel({"[CLS]": 0, "x": 1}, unk_token="x")))
