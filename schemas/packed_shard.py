"""The packed shard: one Parquet file of packed sequences, ready for training (format version 1).

One row is one sequence of ``seq_length`` ids. The ids are a fixed-size binary, little-endian, padded at the
end and not compressed: Parquet has no 16-bit type, and a list column reads at a tenth of the speed
(``benchmarks/packed_reading.py``). Whatever has one entry per document is a list column; what training needs
of it is uncompressed, what only traces a row back to its source is compressed. Row groups are small, so that
a random row costs a fraction of a millisecond. ``docs/packed_format.md`` is the specification.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout

FORMAT_VERSION = 1
FOOTER_KEY = b"seed_shards.packed_shard"
FILE_PATTERN = "packed-*.parquet"
ROWS_PER_GROUP = 64
IGNORED_LABEL = -100
"""Label of a position that is not learned; the convention of PyTorch, Hugging Face and Megatron."""
TRAINING_COLUMNS = ("ids", "cu_seqlens", "loss_runs", "sources")
"""What a training step reads; the other columns trace documents back."""


class PackedShardError(ValueError):
    """A file is no packed shard, or breaks the contract; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where each document of a sequence came from: equally long, one entry per document."""

    shards: Sequence[str]
    """File, as the mixture's resolved inputs name it."""
    rows: NDArray[np.uint32]
    """Row in that file."""
    epochs: NDArray[np.uint16]
    """Which pass over its source: 0 is the first."""
    parts: NDArray[np.uint16]
    """0: a whole document or its first part; k: the k-th continuation of a document that was split."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedSequence:
    """One row: ``seq_length`` ids that hold whole documents, then padding."""

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    """(seq_length,) uint16 or uint32, the vocabulary layout's ``id_dtype``; padding at the end."""
    cu_seqlens: NDArray[np.int32]
    """(num_documents + 1,) int32: first 0, last the number of ids without padding."""
    loss_runs: NDArray[np.int32]
    """Lengths of runs that are by turns not learned and learned, starting with not learned; they add up
    to the number of ids without padding."""
    sources: NDArray[np.uint16]
    """(num_documents,) index into the footer's ``sources``."""
    origins: Origins | None = None
    """Read only on request."""

    @property
    def num_ids(self) -> int:
        """Ids without padding."""
        return int(self.cu_seqlens[-1])

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """(seq_length,) True where the id is to be predicted from the ids before it in its document."""
        mask = np.zeros(len(self.ids), np.bool_)
        mask[: self.num_ids] = decode_runs(self.loss_runs)
        return mask

    @property
    def labels(self) -> NDArray[np.int64]:
        """(seq_length,) int64: what position i has to predict, the id at i + 1, or -100.

        The first id of a document is never learned, so no label crosses a document's bound.
        """
        labels = np.full(len(self.ids), IGNORED_LABEL, np.int64)
        mask, ids = decode_runs(self.loss_runs), self.ids[: self.num_ids]
        np.copyto(labels[: len(ids) - 1], ids[1:], where=mask[1:])
        return labels


def encode_runs(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Run lengths of a mask, the first run being False and perhaps of length 0; empty for no positions."""
    return encode_row_runs(mask, np.array([0, len(mask)]))[0] if len(mask) else np.empty(0, np.int32)


def encode_row_runs(
    mask: NDArray[np.bool_], bounds: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Run lengths of several rows, one behind the other, and where each row's begin.

    Args:
        mask: (num_ids,) of all rows, none of them empty.
        bounds: (num_rows + 1,) where each row starts in ``mask``.
    """
    is_start = np.ones(len(mask), np.bool_)
    np.not_equal(mask[1:], mask[:-1], out=is_start[1:])
    is_start[bounds[:-1]] = True
    starts_true = bounds[:-1][mask[bounds[:-1]]]  # rows that begin with a False run of length 0
    starts = np.sort(np.concatenate([np.flatnonzero(is_start), starts_true]))
    runs = np.diff(starts, append=len(mask)).astype(np.int32)
    return runs, np.searchsorted(starts, bounds)


def decode_runs(runs: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The mask that ``encode_runs`` made the runs from."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


@dataclass(frozen=True)
class TextTokenizerIdentity:
    """Which text tokenizer made the ids."""

    name: str
    """As the mixture named it: a folder, a file, or a hub id."""
    sha256: str
    """Over the tokenizer's files that decide its ids."""
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class SourceCounts:
    """What one source of the mixture contributed to one packed shard."""

    name: str
    num_documents: int = 0
    """Whole documents, counted at their first part."""
    num_ids: int = 0
    num_learned: int = 0
    num_images: int = 0


@dataclass(frozen=True)
class PackedShardFooter:
    """The key-value metadata of a packed shard, a JSON object under ``seed_shards.packed_shard``.

    Raises:
        ValueError: if the numbers contradict each other.
    """

    seq_length: int
    vocabulary: VocabularyLayout
    tokenizer: TextTokenizerIdentity
    mixture: str
    """Hash over the mixture file's content and its inputs: shards of one build share it."""
    seed: int
    shard_index: int
    num_shards: int
    """Packed shards of the whole build: a folder with fewer is not complete."""
    num_sequences: int
    sources: tuple[SourceCounts, ...]
    """All sources of the mixture, in its order."""
    codebooks: Mapping[str, str] = field(default_factory=dict)
    """Codebook fingerprint of each source that has images, by source name; all are equal."""
    num_codes: int = CODEBOOK_SIZE
    """Entries of that codebook."""
    padding_id: int = 0
    """What stands after the last document: outside every document, never learned, never attended."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.seq_length <= 0:
            raise ValueError(f"seq_length must be positive, got {self.seq_length}")
        if not 0 <= self.shard_index < self.num_shards:
            raise ValueError(f"shard_index {self.shard_index} is outside 0..{self.num_shards - 1}")
        if not 0 <= self.padding_id < self.vocabulary.size:
            raise ValueError(f"padding_id {self.padding_id} is outside the vocabulary")

    @property
    def codebook(self) -> str:
        """The one of all images (``Fingerprint.codebook_hex``); empty where no source has any."""
        return next(iter(self.codebooks.values()), "")

    @property
    def num_ids(self) -> int:
        """Ids of all documents, without padding."""
        return sum(source.num_ids for source in self.sources)

    @property
    def num_padding(self) -> int:
        return self.num_sequences * self.seq_length - self.num_ids

    @property
    def id_dtype(self) -> np.dtype[np.generic]:
        """Little-endian type of the ids on disk."""
        return np.dtype(self.vocabulary.id_dtype).newbyteorder("<")

    def build_identity(self) -> tuple[object, ...]:
        """What all packed shards of one build have in common."""
        names = tuple(source.name for source in self.sources)
        return (self.mixture, self.seed, self.num_shards, self.seq_length, self.vocabulary, names)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse and check a footer.

        Raises:
            ValueError: on another format version or missing fields.
        """
        fields = json.loads(text)
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"format version {fields.get('format_version')}, this program reads version {FORMAT_VERSION}"
            )
        try:
            return cls(
                **fields
                | {
                    "vocabulary": VocabularyLayout(**fields["vocabulary"]),
                    "tokenizer": TextTokenizerIdentity(**fields["tokenizer"]),
                    "sources": tuple(SourceCounts(**source) for source in fields["sources"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"footer lacks or misspells a field: {error}") from error


def packed_schema(seq_length: int, vocabulary: VocabularyLayout) -> pa.Schema:
    """Columns of a packed shard."""
    width = seq_length * np.dtype(vocabulary.id_dtype).itemsize
    element_types = {
        "cu_seqlens": pa.int32(),
        "loss_runs": pa.int32(),
        "sources": pa.uint16(),
        "shards": pa.string(),
        "rows": pa.uint32(),
        "epochs": pa.uint16(),
        "parts": pa.uint16(),
    }
    columns = [pa.field("ids", pa.binary(width), nullable=False)]
    for name, element_type in element_types.items():
        element = pa.field("element", element_type, nullable=False)
        columns.append(pa.field(name, pa.list_(element), nullable=False))
    return pa.schema(columns)


def footer_of(metadata: pq.FileMetaData) -> PackedShardFooter:
    """Footer out of Parquet metadata that was already read; ValueError if it holds none."""
    entries = metadata.metadata or {}
    if FOOTER_KEY not in entries:
        raise ValueError(f"no {FOOTER_KEY.decode()} entry: not a packed shard")
    return PackedShardFooter.from_json(entries[FOOTER_KEY])
