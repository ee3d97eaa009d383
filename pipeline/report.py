"""What a folder of token shards holds, gathered for `report_page`: counts, code usage, a few documents.

Reads every footer and the ledgers once, the codes column in batches, and the text of the shown documents
only: memory does not grow with the folder.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.report_page import render_page
from pipeline.shard_task import TOKEN_SHARD_SUFFIX, ledger_name
from pipeline.source_pictures import PictureFolders, find_pictures
from pipeline.sources.json_lines import JSON_SUFFIXES
from pipeline.token_dataset import LOGS_FOLDER, TokenDataset
from schemas.atomic_write import write_atomically
from schemas.document import Document
from schemas.fingerprint import Fingerprint
from schemas.quarantine import QuarantineRecord, Unit, parse_records
from schemas.token_shard import ShardCounts, TokenShardFooter, read_documents
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE

EXAMPLES_PER_REASON = 3
DOCUMENTS_SEARCHED = 200
"""Rows of a shard among which those to show are looked for."""


TABLES = {Unit.SAMPLE: "samples", Unit.IMAGE: "images"}
"""Which counts of a footer a ledger entry belongs to; the others are notes."""
Examples = dict[tuple[str, str], list[QuarantineRecord]]
"""The first ledger entries of each (table, reason)."""


@dataclass(frozen=True)
class ShardLine:
    """One token shard."""

    name: str
    footer: TokenShardFooter
    num_bytes: int

    @property
    def counts_pictures(self) -> bool:
        """Whether the source's bytes are those of its pictures, too; Parquet and JSON only name them."""
        is_list = self.footer.source.partition("?")[0].lower().endswith((".parquet", *JSON_SUFFIXES))
        return not (is_list and self.footer.counts.images_read)


@dataclass
class CodesByPlace:
    """How often each code occurs, and at each of the 32 places."""

    counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((CODES_PER_IMAGE, CODEBOOK_SIZE), np.int64)
    )
    """(32, 8192)."""

    def add(self, codes: NDArray[np.uint16]) -> None:
        """Count codes, (num_images * 32,) uint16."""
        for place, column in enumerate(codes.reshape(-1, CODES_PER_IMAGE).T):
            self.counts[place] += np.bincount(column, minlength=CODEBOOK_SIZE)

    @property
    def totals(self) -> NDArray[np.int64]:
        """(8192,) uses of each code."""
        totals: NDArray[np.int64] = self.counts.sum(axis=0)
        return totals

    def perplexity(self) -> float:
        """Number of codes that, used equally, would be as unpredictable."""
        return _perplexity(self.totals)

    def perplexity_by_place(self) -> list[float]:
        """The same for each of the 32 places."""
        return [_perplexity(row) for row in self.counts]


def _perplexity(counts: NDArray[np.int64]) -> float:
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class ShownDocument:
    """One document of the gallery."""

    shard: str
    document: Document
    pictures: tuple[bytes | None, ...]
    """A JPEG for each image segment where its source was found."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    url: str
    kind: str
    fingerprint: Fingerprint
    settings: dict[str, Any]
    shards: list[ShardLine]
    counts: ShardCounts
    usage: CodesByPlace
    examples: Examples
    gallery: list[ShownDocument]

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def counts_pictures(self) -> bool:
        """Whether the bytes of the source shards are those of all pictures, too."""
        return all(shard.counts_pictures for shard in self.shards)

    @property
    def source_bytes(self) -> int | None:
        """Bytes of the source shards, where all are known."""
        sizes = [shard.footer.source_bytes for shard in self.shards]
        return None if None in sizes or not sizes else sum(size for size in sizes if size is not None)


def make_report(
    dataset: TokenDataset, num_documents: int = 12, folders: PictureFolders | None = None
) -> Report:
    """Read what the page needs.

    Args:
        dataset: the folder.
        num_documents: documents of the gallery, spread over the shards.
        folders: where pictures are looked for.

    Raises:
        TokenShardError: naming a file that is damaged.
    """
    files = dataset.files()
    names = sorted(dataset.done())
    shards = [ShardLine(name, dataset.footer(name), files[name + TOKEN_SHARD_SUFFIX]) for name in names]
    counts = sum((shard.footer.counts for shard in shards), ShardCounts())
    usage = CodesByPlace()
    for name in names:
        for codes in _codes(dataset, name):
            usage.add(codes)
    return Report(
        url=dataset.folder.url,
        kind=dataset.manifest.kind,
        fingerprint=dataset.manifest.fingerprint,
        settings=dict(dataset.manifest.settings),
        shards=shards,
        counts=counts,
        usage=usage,
        examples=_examples(dataset, shards, files),
        gallery=list(_gallery(dataset, shards, num_documents, folders or PictureFolders())),
    )


def _codes(dataset: TokenDataset, name: str) -> Iterator[NDArray[np.uint16]]:
    source = dataset.folder.parquet_source(name + TOKEN_SHARD_SUFFIX)
    with pq.ParquetFile(**source) as file:
        for batch in file.iter_batches(columns=["codes"]):
            yield batch.column(0).flatten().to_numpy()


def _examples(dataset: TokenDataset, shards: list[ShardLine], files: dict[str, int]) -> Examples:
    found: Examples = {}
    for shard in shards:
        quarantine = shard.footer.quarantine
        if quarantine is None or (ledger := ledger_name(shard.name, quarantine.sha256)) not in files:
            continue
        for record in parse_records(dataset.folder.read(ledger)):
            kind = TABLES.get(record.unit, "notes")
            examples = found.setdefault((kind, record.reason.value), [])
            if len(examples) < EXAMPLES_PER_REASON:
                examples.append(record)
    return found


def _gallery(
    dataset: TokenDataset, shards: list[ShardLine], num_documents: int, folders: PictureFolders
) -> Iterator[ShownDocument]:
    """Documents from evenly spread shards, those with pictures first."""
    full = [shard for shard in shards if shard.footer.counts.documents_written]
    if not full or num_documents < 1:
        return
    step = max(1, len(full) // num_documents)
    chosen = full[::step][:num_documents]
    shares = Counter(itertools.islice(itertools.cycle(range(len(chosen))), num_documents))
    for index, shard in enumerate(chosen):
        source = dataset.folder.parquet_source(shard.name + TOKEN_SHARD_SUFFIX)
        documents = list(itertools.islice(read_documents(**source), DOCUMENTS_SEARCHED))
        documents.sort(key=lambda document: not document.images)  # stable: otherwise in order
        documents = documents[: shares[index]]
        pictures = find_pictures(shard.footer, dataset.manifest, documents, folders)
        for document in documents:
            missing = (None,) * len(document.images)
            yield ShownDocument(shard.name, document, pictures.get(document.key, missing))


def images_of_last_run(dataset: TokenDataset) -> Path | None:
    """The folder that the newest run was given with ``--images``, as its log tells."""
    configs = [name for name in dataset.folder.names(LOGS_FOLDER) if name.endswith(".config.json")]
    if not configs:
        return None
    config = json.loads(dataset.folder.read(f"{LOGS_FOLDER}/{max(configs)}"))["config"]
    return Path(config["images"]) if config.get("images") else None


def write_report(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """``seed-shards report``: write the page and say where it is."""
    folders = PictureFolders(options.sources, options.images or images_of_last_run(dataset))
    report = make_report(dataset, options.limit, folders)
    if not report.shards:
        raise ValueError(f"{dataset.folder.url}: holds no token shard yet")
    page = render_page(report).encode("utf-8", "backslashreplace")
    write_atomically(options.output, page)
    print(f"{options.output}: {len(page)} bytes, {len(report.gallery)} documents", file=output)
    return 0
