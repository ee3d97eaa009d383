"""The mixture: which sources, in which shares, become which packed set.

Plain frozen dataclasses; ``schemas.settings`` reads them from a file's nested mappings. Templates' settings
and file names are resolved in ``pipeline.packing``; here they are just carried.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.settings import SettingsError


class MixtureError(SettingsError):
    """A mixture that cannot be used; the message names the setting, its value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which documents of a source to keep. Bounds are inclusive; what is refused is counted by reason."""

    min_text_characters: int | None = None
    max_text_characters: int | None = None
    """Over all texts of a document."""
    min_images: int | None = None
    max_images: int | None = None
    where: str | None = None
    """An expression over the metadata's fields, such as ``similarity > 0.3 and language == 'en'``."""

    def __post_init__(self) -> None:
        for name in ("text_characters", "images"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise MixtureError(f"min_{name} {low} is above max_{name} {high}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One named source."""

    name: str
    paths: tuple[str, ...]
    """Files, folders or globs, relative to the mixture file: token shards, or plain text."""
    format: Literal["token_shards", "parquet", "jsonl"] = "token_shards"
    """``parquet`` and ``jsonl`` hold plain text, one document a row or line."""
    text_field: str = "text"
    """Plain text only: the column or key that holds the text."""
    weight: float | None = None
    """Share of the packed set, relative to the other sources' weights; the source repeats as needed."""
    epochs: float | None = None
    """Or: how many times to go over the source; the last pass may be partial."""
    template: str = "pair"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The template's settings."""
    filters: FilterConfig = FilterConfig()

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "_").replace(".", "_").isidentifier():
            raise MixtureError(f"source name {self.name!r} must be letters, digits, '_', '-' and '.'")
        if not self.paths:
            raise MixtureError(f"source {self.name}: no paths")
        if (self.weight is None) == (self.epochs is None):
            raise MixtureError(f"source {self.name}: give a weight or epochs, one of the two")
        amount = self.weight if self.weight is not None else self.epochs
        if amount is None or not math.isfinite(amount) or amount <= 0:
            raise MixtureError(f"source {self.name}: weight or epochs must be positive, got {amount}")


@dataclass(frozen=True, kw_only=True)
class TextTokenizerConfig:
    """The language model's text tokenizer."""

    path: str
    """Folder or file relative to the mixture file, or a hub id such as ``org/name``."""
    bos_token: str | None = None
    eos_token: str | None = None
    base_vocabulary: int | None = None
    """Ids of the language model before image ids are added, where it has more than its tokenizer."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How much to pack, for mixtures by weight: one of the two."""

    sequences: int | None = None
    ids: int | None = None
    """Ids without padding."""

    def __post_init__(self) -> None:
        for name in ("sequences", "ids"):
            amount = getattr(self, name)
            if amount is not None and amount <= 0:
                raise MixtureError(f"output.{name} must be positive, got {amount}")
        if self.sequences is not None and self.ids is not None:
            raise MixtureError("output: give sequences or ids, not both")


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How documents are laid into rows. Other values give another, equally valid packed set."""

    window_documents: int = 32_768
    """Documents packed together: more leave less padding, and mix shares over a longer stretch."""
    windows_per_shard: int = 8
    """Windows of one packed shard."""
    bucket_ids: int = 16_000_000
    """Ids of one bucket of the external shuffle: what one task holds in memory."""
    task_rows: int = 16_384
    """Documents that one rendering task reads."""

    def __post_init__(self) -> None:
        for name in ("window_documents", "windows_per_shard", "bucket_ids", "task_rows"):
            if getattr(self, name) < 1:
                raise MixtureError(f"packing.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A whole mixture file."""

    text_tokenizer: TextTokenizerConfig
    sources: tuple[SourceConfig, ...]
    seq_length: int = 4096
    """Ids of a packed sequence."""
    seed: int = 0
    output: OutputConfig = OutputConfig()
    weight_unit: Literal["ids", "documents"] = "ids"
    """What weights are shares of."""
    deduplicate: bool = False
    """Keep one of documents that are equal to the last character and code, over all sources."""
    packing: PackingConfig = PackingConfig()

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names:
            raise MixtureError("sources: there are none")
        if len(set(names)) < len(names):
            raise MixtureError(f"sources: names must differ, got {names}")
        if self.seq_length < 64:
            raise MixtureError(f"seq_length must be at least 64 (an image is 34 ids), got {self.seq_length}")
        by_weight = [source.name for source in self.sources if source.weight is not None]
        if by_weight and len(by_weight) < len(names):
            raise MixtureError(
                f"sources: {by_weight} have a weight, the others epochs; a mixture is by weight or by epochs"
            )
        has_budget = self.output.sequences is not None or self.output.ids is not None
        if by_weight and not has_budget:
            raise MixtureError(
                "output: a mixture by weight has no end of its own; give output.sequences or output.ids"
            )
        if has_budget and not by_weight:
            raise MixtureError("output: a mixture by epochs ends by itself; leave output out, or use weights")

    @property
    def is_weighted(self) -> bool:
        return self.sources[0].weight is not None
