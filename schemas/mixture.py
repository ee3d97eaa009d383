"""The mixture: which sources, in which shares, become which packed set.

Plain frozen dataclasses, and a strict way from nested mappings (a YAML file, say) to them: an unknown key is
an error that suggests the nearest known one. Templates' settings and file names are resolved in
``pipeline.packing``; here they are just carried.
"""

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")


class MixtureError(ValueError):
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


def parse_config(config_class: type[Config], value: Any, where: str = "") -> Config:
    """Build a frozen dataclass from nested mappings, lists and scalars.

    Raises:
        MixtureError: on an unknown or missing key, a value of the wrong type, or one that the class refuses;
            the message begins with the path of the setting.
    """
    if not isinstance(value, Mapping):
        raise MixtureError(f"{where or 'mixture'}: expected settings, got {value!r}")
    hints = typing.get_type_hints(config_class)
    known: dict[str, Field[Any]] = {item.name: item for item in fields(config_class)}  # type: ignore[arg-type]
    arguments = {}
    for key, item in value.items():
        if key not in known:
            raise MixtureError(f"{where}{key}: unknown setting{_suggestion(str(key), known)}")
        arguments[key] = _convert(hints[key], item, f"{where}{key}")
    missing = [
        name
        for name, item in known.items()
        if name not in arguments and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise MixtureError(f"{where or 'mixture: '}missing {', '.join(missing)}")
    try:
        return config_class(**arguments)
    except MixtureError:
        raise
    except ValueError as error:
        raise MixtureError(f"{where.rstrip('.') or 'mixture'}: {error}") from error


def _suggestion(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise MixtureError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return parse_config(hint, value, f"{where}.")
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise MixtureError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is not None or hint is Any:
        return value
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    try:
        if issubclass(hint, str) and isinstance(value, str):
            return hint(value)  # an enumeration
    except ValueError as error:
        raise MixtureError(f"{where}: {error}") from error
    raise MixtureError(f"{where}: expected {hint.__name__}, got {value!r}")
