"""OBELICS as it is published: Parquet with ``texts``, ``images`` (URLs) and metadata, joined with pictures.

The pictures were downloaded before, by `ingest` or img2dataset. Nothing is fetched here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.shard_task import ShardTask
from pipeline.sources.document_text import clean_text
from pipeline.sources.interleaved import (
    InterleavedConfig,
    Node,
    OnBadImage,
    build_document,
    document_metadata,
    read_nodes,
)
from pipeline.sources.parquet_rows import read_parquet_rows
from pipeline.sources.records import RawImage, SourceItems
from pipeline.url_images import UrlImages
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

COLUMNS = ("images", "texts", "general_metadata")


@dataclass(frozen=True, kw_only=True)
class ObelicsParquetSource:
    """A function of one task, a Parquet file, that travels to the workers."""

    images: Path
    """Folder of downloaded pictures with its index (`url_images.build_index`)."""
    config: InterleavedConfig = field(default_factory=InterleavedConfig)
    on_bad_image: OnBadImage = "drop-image"

    def __call__(self, task: ShardTask) -> SourceItems:
        """One document or one ``sample`` record for each row, keyed by row number.

        Raises:
            ValueError: if the file is no Parquet of this layout.
        """
        with UrlImages(self.images) as images:
            for number, row in enumerate(read_rows(task.source)):
                key = f"{number:09d}"
                try:
                    self._check_metadata(row)
                    nodes = read_nodes(row, lambda url: find_url(images, url))
                    yield from self._document(key, nodes, row, task.source)
                except RefusedError as refusal:
                    yield QuarantineRecord(task.source, key, Unit.SAMPLE, refusal.reason, refusal.detail)

    def _check_metadata(self, row: dict[str, Any]) -> None:
        general = row.get("general_metadata")
        if isinstance(general, str):
            row["general_metadata"] = clean_text(general, self.config.on_bad_encoding, "interleaved")

    def _document(self, key: str, nodes: list[Node], row: dict[str, Any], source: str) -> SourceItems:
        num_bytes = sum(len(node.data) for node in nodes if isinstance(node, RawImage))
        num_bytes += sum(len(text.encode("utf-8", "replace")) for text in row["texts"] if text)
        document, records = build_document(
            key, nodes, document_metadata(row), source, self.config, num_bytes, self.on_bad_image
        )
        yield from records
        yield document


def read_rows(url: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of a published file, a few at a time in memory. Raises ValueError naming the file."""
    return read_parquet_rows(str(url), ("images", "texts"), COLUMNS)


def find_url(images: UrlImages, url: str) -> RawImage | RefusedError:
    """The downloaded picture of a URL, or why there is none."""
    found = images.find(url)
    if isinstance(found, str):
        shown = url[:120].encode("utf-8", "backslashreplace").decode()
        return RefusedError(Reason.DOC_IMAGE_MISSING, f"{shown}: {found}"[:300])
    return RawImage(*found)
