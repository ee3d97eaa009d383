"""A language model's text tokenizer, made safe for captions of strangers: text only ever becomes text ids.

Tokenizers split the written form of their special tokens out of any text: a caption that contains ``</s>``
would end its document. Here ``<s>``, ``</s>``, ``<img>`` or ``<|eot_id|>`` in a text stay ordinary text,
whatever the kind of tokenizer: a ``tokenizer.json`` (`json_backend`) or a sentencepiece ``.model`` such as
LLaMA's (`sentencepiece_backend`).
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.vocabulary import VocabularyLayout
from tokenizer.hub import asking_the_hub
from tokenizer.json_backend import JsonBackend
from tokenizer.sentencepiece_backend import SentencePieceBackend
from tokenizer.text_backend import TextBackend, TextTokenizerError

JSON_NAME, SENTENCEPIECE_NAME = "tokenizer.json", "tokenizer.model"
CONFIG_NAMES = ("tokenizer_config.json", "special_tokens_map.json")
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>")
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")


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
        self.sha256 = _sha256(file, self.bos_id, self.eos_id)

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


def _sha256(file: Path, bos_id: int, eos_id: int) -> str:
    return hashlib.sha256(file.read_bytes() + f"{bos_id} {eos_id}".encode()).hexdigest()


def text_tokenizer_hashes(name: str, bos_id: int, eos_id: int) -> list[str]:
    """``TextTokenizer.sha256`` of each tokenizer file that a path or hub id has, with the given marks.

    Raises:
        TextTokenizerError: if there is none.
    """
    return [_sha256(file, bos_id, eos_id) for file in _find_files(_folder_of(name))]


def _find_file(path: Path) -> Path:
    return _find_files(path)[0]


def _find_files(path: Path) -> list[Path]:
    """The tokenizer's file, and behind it others of the same folder that hold it as well."""
    if path.is_file():
        return [path]
    files = [path / name for name in (JSON_NAME, SENTENCEPIECE_NAME) if (path / name).is_file()]
    if files:
        return files
    raise TextTokenizerError(
        f"{path}: neither a tokenizer file nor a folder with {JSON_NAME} or {SENTENCEPIECE_NAME};"
        " for a model of the hub, download its tokenizer files first or give its id as org/name"
    )


def _load_backend(file: Path) -> TextBackend:
    return JsonBackend(file) if file.suffix == ".json" else SentencePieceBackend(file)


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


def load_text_tokenizer(
    name: str, *, bos_token: str | None = None, eos_token: str | None = None
) -> TextTokenizer:
    """A tokenizer from a path, or from the hub where ``name`` is an id such as ``org/name``.

    Raises:
        TextTokenizerError: if it cannot be had.
    """
    tokenizer = TextTokenizer(_folder_of(name), bos_token=bos_token, eos_token=eos_token)
    tokenizer.name = name
    return tokenizer


def _folder_of(name: str) -> Path:
    """A path as it is; of a hub id the folder of its tokenizer files in the local cache."""
    if Path(name).exists() or name.count("/") != 1:
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with asking_the_hub(f"the text tokenizer {name}"):
            patterns = [JSON_NAME, SENTENCEPIECE_NAME, *CONFIG_NAMES]
            return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        is_unreached = isinstance(error, LocalEntryNotFoundError)
        reason = "not reached, nor in its cache" if is_unreached else str(error).strip().splitlines()[-1]
        raise TextTokenizerError(
            f"{name}: neither a path here nor a tokenizer on the Hugging Face hub ({reason})"
        ) from error
