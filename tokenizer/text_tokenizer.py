"""A language model's text tokenizer, made safe for captions of strangers: text only ever becomes text ids.

Tokenizers split the written form of their special tokens out of any text: a caption that contains ``</s>``
would end its document. Here the added tokens, the document marks and SEED's own tokens are taken out of the
encoder's copy of the vocabulary (and of the merges that would spell one), whatever the kind of model, so that
``<s>``, ``</s>``, ``<img>`` or ``<|eot_id|>`` in a text stay ordinary text. Added tokens that are nothing but
whitespace stay: they are how some tokenizers write indentation. So do the unknown token and byte pieces,
which stand for text.

Reads a ``tokenizer.json`` (tokenizers library) or a sentencepiece ``.model`` such as LLaMA's.
"""

import hashlib
import json
import re
import secrets
from array import array
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout

JSON_NAME, SENTENCEPIECE_NAME = "tokenizer.json", "tokenizer.model"
CONFIG_NAMES = ("tokenizer_config.json", "special_tokens_map.json")
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
SEED_MARKERS = ("<img>", "</img>")
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextTokenizerError(ValueError):
    """A text tokenizer that cannot be loaded or used; the message names it and the remedy."""


class _Backend(Protocol):
    """What the two libraries have in common."""

    base_size: int
    named_ids: dict[str, int]
    """Ids of special tokens by their written form."""

    def hide(self, marks: AbstractSet[int]) -> None:
        """Make the encoder, without these ids and without all other special ones.

        Raises:
            TextTokenizerError: if texts would still yield one of them.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of each text in turn, so that never all stand in memory as Python integers."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TextTokenizer:
    """Text to ids and back, without special-token splitting.

    Args:
        path: a folder with ``tokenizer.json`` or ``tokenizer.model``, or one of these files.
        bos_token, eos_token: written form of the document marks; default: what the tokenizer's config says,
            then the usual names. A tokenizer without a beginning mark begins documents with its end mark.

    Raises:
        TextTokenizerError: if there is no tokenizer, or its document marks cannot be told.
    """

    def __init__(
        self, path: str | Path, *, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        self.name = str(path)
        file = _find_file(Path(path))
        self._backend = _load_backend(file)
        marks = _read_marks(file.parent)
        self.eos_id = self._find_id("eos", eos_token or marks.get("eos_token"), EOS_NAMES)
        try:
            self.bos_id = self._find_id("bos", bos_token or marks.get("bos_token"), BOS_NAMES)
        except TextTokenizerError:
            if bos_token is not None:
                raise
            self.bos_id = self.eos_id
        self._backend.hide({self.bos_id, self.eos_id})
        self.sha256 = hashlib.sha256(file.read_bytes() + f"{self.bos_id} {self.eos_id}".encode()).hexdigest()

    def use_marks(self, bos_id: int, eos_id: int) -> None:
        """Begin and end documents with other ids: those that a model was trained with.

        Raises:
            TextTokenizerError: if one of them is outside the vocabulary, or is the unknown token.
        """
        if not 0 <= min(bos_id, eos_id) <= max(bos_id, eos_id) < self.base_size:
            raise TextTokenizerError(
                f"{self.name}: no ids {bos_id} and {eos_id} among its {self.base_size}; give the text"
                " tokenizer that the model's data were packed with"
            )
        self.bos_id, self.eos_id = bos_id, eos_id
        self._backend.hide({bos_id, eos_id})

    @property
    def base_size(self) -> int:
        """Ids of the tokenizer, its special tokens included, SEED's own tokens excluded."""
        return self._backend.base_size

    @property
    def layout(self) -> VocabularyLayout:
        """The vocabulary of a language model that grows out of this tokenizer's."""
        return VocabularyLayout(self.base_size)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of one text, without document marks."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of many texts in a row (uint32), and how many each has (int64)."""
        flat, lengths = array("I"), array("q")
        for ids in self._backend.encode_batch(texts):
            flat.extend(ids)
            lengths.append(len(ids))
        return np.frombuffer(flat, np.uint32), np.frombuffer(lengths, np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of ids; document marks are left out."""
        marks = {self.bos_id, self.eos_id}
        return self._backend.decode([int(value) for value in ids if int(value) not in marks])

    def _find_id(self, kind: str, named: str | None, usual: Sequence[str]) -> int:
        for name in [named] if named else usual:
            if name in self._backend.named_ids:
                return self._backend.named_ids[name]
        raise TextTokenizerError(
            f"{self.name}: no {kind} token {named or list(usual)} in the tokenizer;"
            f" name it in the mixture as text_tokenizer.{kind}_token"
        )


class _JsonBackend:
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


class _SentencePieceBackend:
    """A sentencepiece ``.model``; it never splits control tokens out of a text."""

    def __init__(self, file: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise TextTokenizerError(
                f"{file}: not a sentencepiece model ({error}); LLaMA 3's tokenizer.model is another format,"
                " use the tokenizer.json of its Hugging Face folder"
            ) from error
        self._file = file
        self.base_size = self._processor.vocab_size()
        self.named_ids = {
            self._processor.id_to_piece(index): index
            for index in range(self.base_size)
            if self._processor.is_control(index)
        }

    def hide(self, marks: AbstractSet[int]) -> None:
        """Special pieces become unused ones, which sentencepiece never gives."""
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        protocol: Any = sentencepiece_model_pb2  # makes its classes when it is imported
        kinds = protocol.ModelProto.SentencePiece
        model = protocol.ModelProto.FromString(self._file.read_bytes())
        for index, piece in enumerate(model.pieces):
            is_defined = piece.type == kinds.USER_DEFINED and _is_spelled(piece.piece)
            if is_defined or (index in marks and piece.type == kinds.NORMAL) or piece.piece in SEED_MARKERS:
                piece.type = kinds.CONTROL if piece.type == kinds.CONTROL else kinds.UNUSED
        if self._processor.unk_id() in marks:
            raise TextTokenizerError(
                f"{self._file}: a document mark is the model's unknown piece, so that unknown characters of a"
                " text would end its document; use another tokenizer"
            )
        self._encoder = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode_batch(self, texts: Sequence[str]) -> Iterator[list[int]]:
        yield from self._encoder.encode(list(texts), out_type=int, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(list(ids)))


def _is_spelled(piece: str) -> bool:
    """Whether a user-defined piece is a name, not one character or a run of whitespace."""
    return len(piece) > 1 and not piece.replace("\u2581", " ").isspace()


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (JSON_NAME, SENTENCEPIECE_NAME):
        if (path / name).is_file():
            return path / name
    raise TextTokenizerError(
        f"{path}: neither a tokenizer file nor a folder with {JSON_NAME} or {SENTENCEPIECE_NAME};"
        " for a model of the hub, download its tokenizer files first or give its id as org/name"
    )


def _load_backend(file: Path) -> _Backend:
    return _JsonBackend(file) if file.suffix == ".json" else _SentencePieceBackend(file)


def _read_marks(folder: Path) -> dict[str, str]:
    """``bos_token`` and ``eos_token`` as the configuration files beside the tokenizer name them."""
    marks: dict[str, str] = {}
    for name in CONFIG_NAMES:
        if (folder / name).is_file():
            config = json.loads((folder / name).read_bytes())
            for mark in ("bos_token", "eos_token"):
                value = config.get(mark)
                text = value.get("content") if isinstance(value, dict) else value
                if text:
                    marks.setdefault(mark, text)
    return marks


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


def load_text_tokenizer(
    name: str, *, bos_token: str | None = None, eos_token: str | None = None
) -> TextTokenizer:
    """A tokenizer from a path, or from the hub where ``name`` is an id such as ``org/name``.

    Raises:
        TextTokenizerError: if it cannot be had.
    """
    if Path(name).exists() or name.count("/") != 1:
        return TextTokenizer(name, bos_token=bos_token, eos_token=eos_token)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, allow_patterns=[JSON_NAME, SENTENCEPIECE_NAME, *CONFIG_NAMES])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TextTokenizerError(
            f"{name}: neither a path here nor a tokenizer on the hub: {error}"
        ) from error
    tokenizer = TextTokenizer(folder, bos_token=bos_token, eos_token=eos_token)
    tokenizer.name = name
    return tokenizer
