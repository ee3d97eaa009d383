"""A ``tokenizer.json`` (tokenizers library) that is blind to the written form of its special tokens.

The added tokens, the document marks and SEED's own tokens are taken out of the encoder's copy of the
vocabulary, and of the merges that would spell one, whatever the kind of model. Added tokens that are nothing
but whitespace stay: they are how some tokenizers write indentation. So do the unknown token and byte pieces,
which stand for text.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from schemas.vocabulary import CODEBOOK_SIZE
from tokenizer.text_backend import SEED_MARKERS, TextTokenizerError

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class JsonBackend:
    """A ``tokenizer.json``."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        try:
            description = json.loads(file.read_bytes())
            added = {token["content"]: int(token["id"]) for token in description.get("added_tokens") or []}
            vocabulary = _vocabulary_of(description["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise TextTokenizerError(f"{file}: not a tokenizer.json: {error}") from error
        seed_tokens = {*SEED_MARKERS, *(f"<img_{code:05d}>" for code in range(CODEBOOK_SIZE))}
        self._file, self._description = file, description
        self._special = {*added, *(seed_tokens & vocabulary.keys())}
        self.named_ids = {**vocabulary, **added}
        self.base_size = 1 + max(value for name, value in self.named_ids.items() if name not in seed_tokens)
        self._decoder = Tokenizer.from_file(str(file))

    def hide(self, marks: AbstractSet[int]) -> None:
        from tokenizers import Tokenizer

        mark_names = {name for name, value in self.named_ids.items() if value in marks}
        model, name = self._description["model"], _unknown_of(self._description["model"])
        if name in mark_names:
            if not _is_byte_level(self._description):
                raise TextTokenizerError(
                    f"{self._file}: {name!r} is a document mark and the model's unknown token, so that"
                    " unknown characters of a text would end its document; name other marks in the mixture as"
                    " text_tokenizer.bos_token and text_tokenizer.eos_token, or use another tokenizer"
                )
            model, name = {**model, "unk_token": None}, None  # bytes are never unknown
        special = {
            token for token in self._special if not token.isspace() and not _BYTE_PIECE.fullmatch(token)
        }
        hidden = (special | mark_names) - {name}
        description = _without_tokens({**self._description, "model": model}, hidden, hidden | {name})
        self._encoder = Tokenizer.from_str(json.dumps(description))

    def encode_batch(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for encoding in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False):
            yield encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._decoder.decode(list(ids), skip_special_tokens=False))


def _vocabulary_of(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}  # Unigram: a list of pairs


def _unknown_of(model: dict[str, Any]) -> str | None:
    """The written form of the model's unknown token."""
    if isinstance(model["vocab"], list):
        index = model.get("unk_id")
        return None if index is None else str(model["vocab"][index][0])
    return model.get("unk_token") or None


def _is_byte_level(description: dict[str, Any]) -> bool:
    """Whether texts reach the model as bytes, all of which it knows."""
    steps = description.get("pre_tokenizer") or {}
    kinds = {step.get("type") for step in [steps, *steps.get("pretokenizers", [])]}
    return "ByteLevel" in kinds and len(description["model"]["vocab"]) >= 256


def _without_tokens(
    description: dict[str, Any], hidden: AbstractSet[str], unmerged: AbstractSet[str | None]
) -> dict[str, Any]:
    """The same tokenizer, blind to the written form of its special tokens.

    Their pieces keep their ids under names drawn at random, which no text can spell.
    """
    kept = [token for token in description.get("added_tokens") or [] if token["content"].isspace()]
    model = dict(description["model"])

    def rename(piece: str) -> str:
        return f"\0{secrets.token_hex(16)}" if piece in hidden else piece

    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if unmerged.isdisjoint(_spelled(merge))]
    return {**description, "added_tokens": kept, "post_processor": None, "model": model}


def _spelled(merge: str | list[str]) -> tuple[str, str, str]:
    """The two parts of a merge and what it makes of them."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right
