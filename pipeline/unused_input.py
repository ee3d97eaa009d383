"""Why a run could use nothing of its input: what a ledger begins with, and the job for such members."""

import itertools
import re
import textwrap
from collections.abc import Iterable

from pipeline.shard_task import ledger_name
from pipeline.sources.pairs import IMAGE_EXTENSIONS
from pipeline.token_dataset import TokenDataset
from schemas.quarantine import QuarantineRecord, Unit, parse_records
from schemas.token_shard import TokenShardError

VIDEO_EXTENSIONS = frozenset({"mp4", "webm", "avi", "mkv", "mov"})
NUM_PROBED = 100
"""Token shards among which one with a ledger is looked for."""
_DETAIL_CHARS = 160


def why_unused(dataset: TokenDataset, names: Iterable[str]) -> str:
    """One line: the first refusal of the first of these token shards that has a ledger, and the remedy."""
    for name in itertools.islice(names, NUM_PROBED):
        ledger, record = first_refusal(dataset, name)
        if record is not None:
            detail = f" ({_shortened(record.detail)})" if record.detail else ""
            return f"{ledger} begins with {record.reason}{detail}: {_remedy(dataset.manifest.kind, record)}"
    return "nothing was refused either: the shards hold no sample, or failed"


def first_refusal(
    dataset: TokenDataset, name: str, unit: Unit | None = None
) -> tuple[str, QuarantineRecord | None]:
    """A token shard's ledger, and its first sample there, or entry of ``unit``; of others where none is."""
    try:
        quarantine = dataset.footer(name).quarantine
        if quarantine is None:
            return "", None
        ledger = ledger_name(name, quarantine.sha256)
        records = list(parse_records(dataset.folder.read(ledger)))
    except (TokenShardError, OSError, ValueError):  # `seed-shards validate` names what is wrong with it
        return "", None
    wanted = (record for record in records if record.unit is (unit or Unit.SAMPLE))
    return ledger, next(wanted, records[0] if records else None)


def _shortened(detail: str) -> str:
    """Whole words of it, and a mark where some are left out."""
    words = textwrap.shorten(detail, _DETAIL_CHARS, placeholder=" …")
    return words if words.strip(" …") else f"{detail[:_DETAIL_CHARS]}…"


def _remedy(kind: str, record: QuarantineRecord) -> str:
    """The job that reads such members, where their suffixes tell."""
    found = re.findall(r"\.(\w+)", record.detail) if record.detail.startswith("members:") else []
    if kind != "videos" and VIDEO_EXTENSIONS.intersection(found):
        return "clips are read by jobs/tokenize_videos.py, with another --output"
    if kind == "videos" and IMAGE_EXTENSIONS.intersection(found):
        return "pictures are read by jobs/tokenize_pairs.py, with another --output"
    return "is this the job for such input, with all it needs? after a change of the settings, --overwrite"
