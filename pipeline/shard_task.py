"""What travels between the driver and those who tokenize: one source shard to do, and what became of it."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.token_shard import ShardCounts

TOKEN_SHARD_SUFFIX = ".parquet"
_LEDGER = re.compile(r"(.+)\.quarantine-[0-9a-f]{8}\.jsonl", re.DOTALL)


def ledger_name(name: str, sha256: str) -> str:
    """File name of the ledger of the shard ``name`` with this content: other content, other file."""
    return f"{name}.quarantine-{sha256[:8]}.jsonl"


def ledger_owner(file_name: str) -> str | None:
    """Name of the shard that a ledger belongs to; None if this is no name of a ledger."""
    match = _LEDGER.fullmatch(file_name)
    return match[1] if match else None


def is_unread(counts: ShardCounts) -> bool:
    """Whether no sample came whole out of a damaged source shard: what the damage cut is no sample."""
    cut = (number for reason, number in counts.samples_quarantined.items() if reason.startswith("tar_"))
    return counts.samples_read == sum(cut)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One source shard and the name of the token shard to make of it."""

    name: str
    """Without suffix, ``/`` between parts: ``name.parquet`` and its ledger (`ledger_name`) are written."""
    source: str
    """Path or URL, as named on input."""
    source_bytes: int | None = None


@dataclass(frozen=True)
class ShardReport:
    """One token shard that was committed."""

    name: str
    source: str
    counts: ShardCounts
    source_complete: bool
    source_bytes: int | None
    """Of the source shard."""
    output_bytes: int
    """Of the token shard and its ledger."""
    seconds: float
    worker: str = ""

    def to_fields(self) -> dict[str, Any]:
        """JSON form, one line of the run log."""
        return {"event": "shard_done", **asdict(self)}


@dataclass(frozen=True)
class ShardFailure:
    """A source shard that was set aside."""

    name: str
    source: str
    error: str
    """One line."""
    attempts: int
    history: list[str] = field(default_factory=list)
    """One line for each attempt."""
