"""The footer of a token shard: what it was made from, by which tokenizer, and what became of every sample."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import NoneType
from typing import Any, Self

from schemas.fingerprint import Fingerprint

FORMAT_VERSION = 1
KINDS = ("pairs", "videos", "interleaved", "chats")


@dataclass(frozen=True)
class ShardCounts:
    """What became of everything that came in: in = written + quarantined, for samples and for images."""

    samples_read: int = 0
    documents_written: int = 0
    samples_quarantined: Mapping[str, int] = field(default_factory=dict)
    """Samples by reason."""
    images_read: int = 0
    """Images and video frames of all samples that the source gave as documents, missing ones included; none
    of a sample that the source itself refused, also where it did so for a missing image."""
    images_written: int = 0
    images_dropped: Mapping[str, int] = field(default_factory=dict)
    """Images by reason; ``document_dropped`` for sound images whose document was dropped."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Refused members and damage of the shard itself, by reason; not part of the balance."""

    @property
    def num_quarantined(self) -> int:
        return sum(self.samples_quarantined.values())

    def imbalance(self) -> str | None:
        """What does not add up, or None."""
        if self.samples_read != self.documents_written + self.num_quarantined:
            return (
                f"{self.samples_read} samples read, but {self.documents_written} written"
                f" + {self.num_quarantined} quarantined"
            )
        dropped = sum(self.images_dropped.values())
        if self.images_read != self.images_written + dropped:
            return f"{self.images_read} images read, but {self.images_written} written + {dropped} dropped"
        return None

    def __add__(self, other: "ShardCounts") -> "ShardCounts":
        merged: dict[str, Any] = {}
        for name, value in asdict(self).items():
            theirs = getattr(other, name)
            merged[name] = value + theirs if isinstance(value, int) else _add_counts(value, theirs)
        return ShardCounts(**merged)


def _add_counts(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    return {name: ours.get(name, 0) + theirs.get(name, 0) for name in sorted(ours.keys() | theirs.keys())}


@dataclass(frozen=True)
class QuarantineFile:
    """The ledger that was committed with a token shard."""

    num_records: int
    sha256: str


@dataclass(frozen=True)
class TokenShardFooter:
    """The key-value metadata of a token shard, a JSON object under ``seed_shards.token_shard``."""

    kind: str
    """pairs, videos, interleaved, chats."""
    source: str
    """Source shard as it was named on input."""
    source_bytes: int | None
    """Its size, where the storage told it."""
    source_complete: bool
    """False if the source shard was damaged: only what was sound before the damage is here."""
    fingerprint: Fingerprint
    counts: ShardCounts
    quarantine: QuarantineFile | None = None
    source_hash: str | None = None
    """SHA-256 of the source shard's first and last 64 KiB; None, and then not written, where its size is not
    known or an earlier version wrote the footer."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")

    def to_json(self) -> str:
        fields = asdict(self) | {
            "fingerprint": self.fingerprint.hex,
            "fingerprint_components": dict(self.fingerprint.components),
        }
        if self.source_hash is None:
            del fields["source_hash"]
        return json.dumps(fields, sort_keys=True, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse and check a footer.

        Raises:
            ValueError: on another format version, a fingerprint that does not match its components, or
                fields that are missing or hold something else.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"footer is a JSON {type(fields).__name__}, not an object")
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"format version {fields.get('format_version')}, this program reads version {FORMAT_VERSION}"
            )
        _check_types(fields, _FIELD_TYPES, "footer")
        try:
            fingerprint = Fingerprint(fields.pop("fingerprint_components"))
            stored_hex = fields.pop("fingerprint")
            ledger = fields.pop("quarantine")
            footer = cls(
                **fields | {"counts": _parse_counts(fields["counts"])},
                fingerprint=fingerprint,
                quarantine=None if ledger is None else _parse_ledger(ledger),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"footer lacks or misspells a field: {error}") from error
        if fingerprint.hex != stored_hex:
            raise ValueError(f"fingerprint {stored_hex} does not match its components ({fingerprint.hex})")
        return footer


_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "source": (str,),
    "source_bytes": (int, NoneType),
    "source_hash": (str,),
    "source_complete": (bool,),
    "fingerprint": (str,),
    "fingerprint_components": (dict,),
    "counts": (dict,),
    "quarantine": (dict, NoneType),
}


def _check_types(fields: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise ValueError if a field that is there has another type; missing fields show when they are used."""
    for name, allowed in types.items():
        if name in fields and type(fields[name]) not in allowed:
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in allowed)
            raise ValueError(f"{where} field {name!r} is {fields[name]!r}, not {names}")


def _parse_counts(fields: Mapping[str, Any]) -> ShardCounts:
    types = {
        name: (int if isinstance(value, int) else dict,) for name, value in asdict(ShardCounts()).items()
    }
    _check_types(fields, types, "footer counts")
    numbers = [n for value in fields.values() for n in (value.values() if type(value) is dict else [value])]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"footer counts hold something else than whole numbers from 0: {dict(fields)}")
    return ShardCounts(**fields)


def _parse_ledger(fields: Mapping[str, Any]) -> QuarantineFile:
    _check_types(fields, {"num_records": (int,), "sha256": (str,)}, "footer quarantine")
    return QuarantineFile(**fields)
