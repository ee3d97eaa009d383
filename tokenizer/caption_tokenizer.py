"""Captions to word ids for stage 1: cleaned as the release cleans them, then BERT's WordPiece.

Cleaning follows LAVIS' caption processor: lower case, nine punctuation marks to blanks, at most 50 words.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.implementations.base_tokenizer import BaseTokenizer
from torch import Tensor

MAX_WORDS = 50
FILE_NAME = "caption_tokenizer.json"
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def clean_caption(caption: str) -> str:
    """Lower case, punctuation stripped, at most 50 words."""
    return " ".join(_PUNCTUATION.sub(" ", caption.lower()).split()[:MAX_WORDS])


class CaptionTokenizer:
    """BERT WordPiece with [CLS] and [SEP], cut and padded to one length."""

    def __init__(self, tokenizer: Tokenizer | BaseTokenizer, max_tokens: int = 32) -> None:
        """Take over ``tokenizer``; ``max_tokens`` counts [CLS] and [SEP].

        Raises:
            ValueError: [CLS], [SEP] or [PAD] is missing from its vocabulary, or [PAD] is not 0 (BERT's).
        """
        missing = [token for token in ("[PAD]", "[CLS]", "[SEP]") if tokenizer.token_to_id(token) is None]
        if missing or tokenizer.token_to_id("[PAD]") != 0:
            raise ValueError(
                f"caption tokenizer: not BERT's layout ([PAD] is 0, missing: {missing or 'none'})"
            )
        tokenizer.enable_truncation(max_tokens)
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def vocabulary_sha256(self) -> str:
        """Identity of the word table: hash over its entries and their ids."""
        entries = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(entries.encode()).hexdigest()

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions as read -> (B, T) int64 ids and (B, T) bool mask, T the longest of them."""
        encoded = self._tokenizer.encode_batch([clean_caption(caption) for caption in captions])
        ids = torch.tensor([item.ids for item in encoded])
        return ids, torch.tensor([item.attention_mask for item in encoded]).bool()

    def save(self, directory: Path) -> None:
        """Write ``caption_tokenizer.json``."""
        self._tokenizer.save(str(directory / FILE_NAME))


def load_caption_tokenizer(source: str) -> CaptionTokenizer:
    """From ``vocab.txt`` (BERT's), a ``tokenizers`` JSON file, a directory with either, or a hub id.

    Raises:
        FileNotFoundError: nothing there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        names = (FILE_NAME, "tokenizer.json", "vocab.txt")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: holds none of {', '.join(names)}")
        path = found[0]
    if path.suffix == ".txt":
        return CaptionTokenizer(BertWordPieceTokenizer(str(path), lowercase=True))
    if path.is_file():
        return CaptionTokenizer(Tokenizer.from_file(str(path)))
    if source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{path}: no such caption tokenizer (vocab.txt, tokenizer.json or a hub id)")
    return CaptionTokenizer(Tokenizer.from_pretrained(source))


def word_tokenizer(captions: Iterable[str], vocab_size: int, max_tokens: int = 32) -> CaptionTokenizer:
    """A small WordPiece vocabulary for runs far from BERT's size: every character, and the most frequent
    words.

    Words outside it are spelled. Deterministic, unlike the WordPiece trainer of ``tokenizers``, whose ties
    fall differently in every process (373 of 1,500 ids differed between two runs on the same captions).

    Raises:
        ValueError: ``vocab_size`` does not even hold the characters.
    """
    counts = Counter(
        word for caption in captions for word in re.findall(r"\w+|[^\w\s]", clean_caption(caption))
    )
    characters = sorted({character for word in counts for character in word})
    entries = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    if vocab_size < len(entries):
        raise ValueError(
            f"captions: a vocabulary of {vocab_size} cannot hold {len(entries)} characters and marks"
        )
    entries += words[: vocab_size - len(entries)]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CaptionTokenizer(BertWordPieceTokenizer(vocab=vocabulary, lowercase=True), max_tokens)
