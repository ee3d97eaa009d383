"""Settings of the download of URL lists."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.guarded_http import HttpLimits
from tokenizer.image_file import PILLOW_PIXEL_LIMIT

RESERVED_COLUMNS = frozenset(
    {"key", "caption", "url", "width", "height", "original_width", "original_height", "status"}
    | {"error_message", "exif", "sha256"}
)
"""Fields of ``key.json`` that img2dataset fills."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """How to download; every field is a flag of ``jobs/ingest.py``."""

    url_column: str = "url"
    """Column of the pictures' addresses."""
    caption_column: str | None = None
    """Column that becomes key.txt; none for pictures alone."""
    kept_columns: tuple[str, ...] = ()
    """Further columns that go into key.json."""
    images_per_shard: int = 10_000
    """Rows of the list that one tar is made of."""
    num_processes: int = 2
    """0 downloads in the calling process, one shard after the other."""
    num_threads: int = 32
    """Downloads under way in each process."""
    timeout: float = 10.0
    """Longest wait for the next bytes of an answer, in seconds."""
    num_retries: int = 1
    """Further attempts at a picture that did not come."""
    user_agent_token: str = "seed-shards"
    """Named in the User-Agent; opt-outs that address it are honoured."""
    honour_opt_out: bool = True
    """Leave out pictures whose server opts out (X-Robots-Tag)."""
    max_pixels: int = PILLOW_PIXEL_LIMIT
    """Pictures with more pixels are refused from their header."""
    http: HttpLimits = field(default_factory=HttpLimits)
    """Where downloads may go, and what one answer may cost."""

    def __post_init__(self) -> None:
        for name in ("images_per_shard", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"ingest.{name} must be at least 1, got {getattr(self, name)}")
        if reserved := RESERVED_COLUMNS & set(self.kept_columns):
            raise ValueError(
                f"ingest.kept_columns: {', '.join(sorted(reserved))} are written by ingestion itself;"
                " rename them in the list"
            )
        if self.timeout <= 0 or self.num_retries < 0 or self.num_processes < 0:
            raise ValueError(
                "ingest.timeout must be positive, ingest.num_retries and ingest.num_processes not negative"
            )


@dataclass(frozen=True, kw_only=True)
class IngestConfig(DownloadConfig):
    """What to download, and how."""

    url_list: Path
    """A parquet, csv, tsv, jsonl or txt file (also .gz), or a folder of files of one of these kinds."""
    output: Path
    """Folder for the shards."""
