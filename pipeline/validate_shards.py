"""Checks a folder of token shards as a whole, and sums it up.

``validate`` trusts nothing but the files: every row of every token shard, every ledger against the footer
that names it, the conservation rule for each shard and for all together, and what should not be there.
"""

import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.shard_task import TOKEN_SHARD_SUFFIX, is_unread, ledger_name
from pipeline.source_identity import SourceIdentity
from pipeline.token_dataset import TokenDataset
from schemas.quarantine import Unit, parse_records
from schemas.token_shard import (
    ShardCounts,
    TokenShardError,
    TokenShardFooter,
    check_token_shard,
)

logger = logging.getLogger(__name__)

FOOTERS_AT_A_TIME = 64
"""An object store answers each in tens of milliseconds."""
PROGRESS_EVERY_S = 15.0
PER_IMAGE = "with texts, without ledgers"
"""What bytes an image mean wherever they are told: those of the token shards, over their images."""


@dataclass
class DatasetSummary:
    """Totals over the footers of a folder."""

    num_shards: int = 0
    num_bytes: int = 0
    counts: ShardCounts = field(default_factory=ShardCounts)
    incomplete: list[str] = field(default_factory=list)
    """Token shards whose source was damaged."""
    unread: list[str] = field(default_factory=list)
    """Those of them of which no sample came."""
    unreadable: list[str] = field(default_factory=list)
    sources: dict[str, SourceIdentity] = field(default_factory=dict)
    """Each source shard as it was when it was tokenized, by name of the token shard."""
    empty: set[str] = field(default_factory=set)
    """Token shards without a document."""

    @property
    def bytes_per_image(self) -> float:
        return self.num_bytes / self.counts.images_written if self.counts.images_written else 0.0

    def to_fields(self) -> dict[str, Any]:
        """Totals in JSON form."""
        return {
            "token_shards": self.num_shards,
            "bytes": self.num_bytes,
            "damaged_sources": len(self.incomplete),
            **asdict(self.counts),
        }


def summarize(dataset: TokenDataset) -> DatasetSummary:
    """Sum up the footers; rows are not read."""
    summary = DatasetSummary()
    files = dataset.files()
    names = sorted(
        name.removesuffix(TOKEN_SHARD_SUFFIX) for name in files if name.endswith(TOKEN_SHARD_SUFFIX)
    )
    for name, footer in zip(names, _footers(dataset, names), strict=True):
        if isinstance(footer, TokenShardError):
            summary.unreadable.append(str(footer))
            continue
        summary.sources[name] = SourceIdentity(footer.source_bytes, footer.source_hash)
        summary.num_shards += 1
        summary.num_bytes += files[name + TOKEN_SHARD_SUFFIX]
        summary.counts += footer.counts
        if not footer.counts.documents_written:
            summary.empty.add(name)
        if not footer.source_complete:
            summary.incomplete.append(name)
            if is_unread(footer.counts):
                summary.unread.append(name)
    return summary


def _footers(dataset: TokenDataset, names: Sequence[str]) -> Iterator[TokenShardFooter | TokenShardError]:
    """In order; the log says how far it is, for a hundred thousand shards take a minute or more."""
    next_s = time.monotonic() + PROGRESS_EVERY_S
    with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as threads:
        found = threads.map(lambda name: _footer_or_error(dataset, name), names)
        for number, footer in enumerate(found):
            if time.monotonic() >= next_s:
                next_s += PROGRESS_EVERY_S
                logger.info("summing up: %d of %d token shards", number, len(names))
            yield footer


def _footer_or_error(dataset: TokenDataset, name: str) -> TokenShardFooter | TokenShardError:
    try:
        return dataset.footer(name)
    except TokenShardError as error:
        return error


def find_faults(dataset: TokenDataset) -> Iterator[str]:
    """Check everything; one line for each fault, naming the file and what is wrong."""
    files = dataset.files()
    names = sorted(dataset.done())
    sources: defaultdict[str, list[str]] = defaultdict(list)
    total = ShardCounts()
    for name in names:
        try:
            footer = check_token_shard(**dataset.folder.parquet_source(name + TOKEN_SHARD_SUFFIX))
        except TokenShardError as error:
            yield str(error)
            continue
        total += footer.counts
        sources[footer.source].append(name)
        yield from _manifest_faults(dataset, name, footer)
        yield from _ledger_faults(dataset, name, footer, files)
    for source, shards in sources.items():
        if len(shards) > 1:
            yield f"{source}: tokenized twice, as {' and '.join(shards)}; remove one"
    if imbalance := total.imbalance():
        yield f"all shards together: {imbalance}"


def _manifest_faults(dataset: TokenDataset, name: str, footer: TokenShardFooter) -> Iterator[str]:
    manifest = dataset.manifest
    if footer.kind != manifest.kind:
        yield f"{name}{TOKEN_SHARD_SUFFIX}: kind {footer.kind}, the folder holds {manifest.kind}"
    if differences := footer.fingerprint.differences(manifest.fingerprint):
        yield f"{name}{TOKEN_SHARD_SUFFIX}: made by another tokenizer: {'; '.join(differences)}"


def _ledger_faults(
    dataset: TokenDataset, name: str, footer: TokenShardFooter, files: Mapping[str, int]
) -> Iterator[str]:
    """The ledger must be the one that the footer names, and hold what the counts say."""
    if footer.quarantine is None:
        if footer.counts.num_quarantined:
            number = footer.counts.num_quarantined
            yield f"{name}{TOKEN_SHARD_SUFFIX}: {number} samples quarantined, but no ledger"
        return
    ledger = ledger_name(name, footer.quarantine.sha256)
    if ledger not in files:
        yield f"{ledger}: missing; its token shard names {footer.quarantine.num_records} records"
        return
    data = dataset.folder.read(ledger)
    if hashlib.sha256(data).hexdigest() != footer.quarantine.sha256:
        yield f"{ledger}: its content is not what its token shard was committed with"
        return
    try:
        records = list(parse_records(data))
    except ValueError as error:
        yield f"{ledger}: {error}"
        return
    if len(records) != footer.quarantine.num_records:
        yield f"{ledger}: holds {len(records)} records, counted {footer.quarantine.num_records}"
    if others := sorted({record.source for record in records} - {footer.source}):
        yield f"{ledger}: names {others[0]} as source, its token shard {footer.source}"
    counts = footer.counts
    by_reason = Counter(str(record.reason) for record in records if record.unit is Unit.SAMPLE)
    if dict(by_reason) != dict(counts.samples_quarantined):
        yield f"{ledger}: holds samples {dict(by_reason)}, counted {counts.samples_quarantined}"
    # Images of documents that were dropped are counted, but have no entry of their own.
    images = Counter(str(record.reason) for record in records if record.unit is Unit.IMAGE)
    is_exact = not counts.num_quarantined
    if images - Counter(counts.images_dropped) or (is_exact and dict(images) != dict(counts.images_dropped)):
        yield f"{ledger}: holds images {dict(images)}, counted {counts.images_dropped}"
