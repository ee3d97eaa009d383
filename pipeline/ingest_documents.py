"""OBELICS documents in, WebDataset shards with their pictures out.

Three steps, each done once and not again when the same command is repeated:

1. every URL of the documents, once, in the order of first use (``urls.parquet``);
2. the pictures, by `ingest` (``images/``): each is downloaded once, however many documents show it;
3. the join (``documents/``): ``key.json`` as published, with member suffixes in the place of URLs, and the
   pictures in reading order. A picture that could not be downloaded keeps its place under the suffix
   ``N.missing``, and ``image_errors`` says why: whether that costs the document is for tokenization to say.
"""

import json
import logging
import re
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest import IngestReport, check_is_installed, ingest, stop_if
from pipeline.ingest_config import IngestConfig
from pipeline.inputs import SourceShard, check_unique
from pipeline.original_images import add_member
from pipeline.output_claim import claim_output
from pipeline.sources.interleaved import ERRORS_FIELD
from pipeline.sources.obelics_parquet import read_rows
from pipeline.sources.parquet_rows import read_parquet_rows
from pipeline.url_images import UrlImages, build_index
from schemas.atomic_write import atomic_path

logger = logging.getLogger(__name__)
URL_BATCH = 65_536
_SURROGATE = re.compile("[\ud800-\udfff]")
MANIFEST_NAME = "_documents.json"


@dataclass(frozen=True)
class JoinReport:
    """What was joined."""

    images: IngestReport
    num_documents: int
    num_placed: int
    """Positions that show a picture."""
    missing: Counter[str] = field(default_factory=Counter)
    """Positions without one, by reason."""


def ingest_documents(
    shards: Sequence[SourceShard],
    config: IngestConfig,
    documents_per_shard: int = 1000,
    must_stop: Callable[[], bool] = lambda: False,
) -> JoinReport:
    """Download the pictures of published Parquet files and join them with their documents.

    Args:
        shards: Parquet files in the published layout; their names become those of the tars.
        config: how to download; ``output`` is the folder for all three steps, ``url_list`` is not used.
        documents_per_shard: documents in one tar.
        must_stop: asked before each shard, and while pictures are downloaded.

    Raises:
        ValueError: naming a file that is not of this layout; or if the folder was made from other files, or
            with another ``documents_per_shard``.
        IngestError: if shards of pictures failed.
        IngestStoppedError: when ``must_stop`` says so.
    """
    check_is_installed()
    _claim(config.output, shards, documents_per_shard)
    files = [shard.url for shard in shards]
    urls = config.output / "urls.parquet"
    if not urls.exists():
        write_unique_urls((file for file in files if not stop_if(must_stop)), urls)
    images = config.output / "images"
    pictures = replace(config, url_list=urls, output=images, caption_column=None, kept_columns=())
    report = ingest(pictures, must_stop)
    if not report.num_rows:
        return JoinReport(report, 0, 0)
    build_index(images)
    joined = Counter[str]()
    missing = Counter[str]()
    with UrlImages(images) as found:
        for source, file in zip(shards, files, strict=True):
            for number, rows in enumerate(_groups(read_rows_with_metadata(file), documents_per_shard)):
                stop_if(must_stop)
                shard = config.output / "documents" / f"{_stem(source)}-{number:05d}.tar"
                first_row = number * documents_per_shard
                joined["documents"] += len(rows)
                joined["placed"] += _write_documents(shard, rows, first_row, found, missing)
    return JoinReport(report, joined["documents"], joined["placed"], missing)


def _claim(output: Path, shards: Sequence[SourceShard], documents_per_shard: int) -> None:
    """All three steps depend on the files, and the names of the tars on how many documents they hold."""
    if documents_per_shard < 1:
        raise ValueError(f"ingest.documents_per_shard must be at least 1, got {documents_per_shard}")
    check_unique([replace(shard, name=_stem(shard)) for shard in shards])
    manifest = output / MANIFEST_NAME
    unclaimed = [name for name in ("urls.parquet", "images", "documents") if (output / name).exists()]
    if unclaimed and not manifest.exists():
        raise ValueError(
            f"--output {output}: holds {', '.join(unclaimed)} but no {MANIFEST_NAME}, so that nobody can say"
            " from which files they were made; choose another folder"
        )
    files = [[shard.name, shard.num_bytes] for shard in shards]
    claim_output(manifest, {"files": files, "documents_per_shard": documents_per_shard})


def _stem(shard: SourceShard) -> str:
    return shard.name.removesuffix(".parquet")


def write_unique_urls(files: Iterable[str | Path], destination: Path) -> None:
    """Every URL of the documents, once, in the order of first use; memory does not grow with their number.

    What is not UTF-8 is no URL and left out.
    """
    with atomic_path(destination) as temporary:
        database = temporary.with_name(f"{temporary.name}.sqlite")
        connection = sqlite3.connect(database)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE urls (number INTEGER PRIMARY KEY, url TEXT UNIQUE)")
            for file in files:
                urls = ((url,) for row in read_rows(file) for url in row["images"] or () if _is_url(url))
                connection.executemany("INSERT OR IGNORE INTO urls (url) VALUES (?)", urls)
            cursor = connection.execute("SELECT url FROM urls ORDER BY number")
            schema = pa.schema([pa.field("url", pa.string(), nullable=False)])
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                while rows := cursor.fetchmany(URL_BATCH):
                    writer.write_batch(pa.record_batch([[url for (url,) in rows]], schema=schema))
        finally:
            connection.close()
            database.unlink()


def _is_url(entry: str | None) -> bool:
    return entry is not None and entry != "" and (entry.isascii() or _SURROGATE.search(entry) is None)


def read_rows_with_metadata(file: str | Path) -> Iterator[dict[str, Any]]:
    """Rows with every column, and the published JSON strings as the objects that they hold."""
    for row in read_parquet_rows(str(file), ("images", "texts")):
        yield {name: _parsed(value) if "metadata" in name else value for name, value in row.items()}


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _groups(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _write_documents(
    shard: Path, rows: list[dict[str, Any]], first_row: int, images: UrlImages, missing: Counter[str]
) -> int:
    """Write one shard of documents unless it is there; returns the pictures placed."""
    num_placed = 0
    if shard.exists():
        for row in rows:
            reasons = [images.why_missing(url) for url in row.get("images") or () if url]
            missing.update(reason for reason in reasons if reason is not None)
            num_placed += reasons.count(None)
        return num_placed
    with atomic_path(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, row in enumerate(rows, first_row):
            suffixes, members, errors = _members(row, images)
            value = row | {"images": suffixes} | ({ERRORS_FIELD: errors} if errors else {})
            add_member(tar, f"{number:09d}.json", _json(value))
            for name, data in members.items():
                add_member(tar, f"{number:09d}.{name}", data)
            missing.update(errors.values())
            num_placed += len(members)
    return num_placed


def _json(value: dict[str, Any]) -> bytes:
    """UTF-8, except where a lone surrogate (`parquet_rows`) must stay for tokenization to judge."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _members(
    row: dict[str, Any], images: UrlImages
) -> tuple[list[str | None], dict[str, bytes], dict[str, str]]:
    """The suffix at each position, the pictures by suffix, and what is missing by the suffix in its place."""
    suffixes: list[str | None] = []
    members, errors = {}, {}
    for position, url in enumerate(row.get("images") or ()):
        if not url:
            suffixes.append(None)
            continue
        found = images.find(url)
        if isinstance(found, str):
            suffixes.append(f"{position}.missing")
            errors[f"{position}.missing"] = found
        else:
            suffixes.append(f"{position}.{found[1]}")
            members[f"{position}.{found[1]}"] = found[0]
    return suffixes, members, errors
