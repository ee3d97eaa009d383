"""What became of everything: documents in = packed + refused + left over; ids = packed + left over."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.packing.mixture_file import Mixture
from pipeline.packing.rendered import ItemsFile
from schemas.atomic_write import write_atomically
from schemas.packed_folder import PackedFolder
from schemas.packed_shard import SourceCounts

REPORT_NAME = "report.json"
REFUSED = "refused:"


class ImbalanceError(AssertionError):
    """Documents or ids were lost or doubled: a bug of the build, never of its input."""


@dataclass(frozen=True)
class SourceReport:
    """What the stages before packing say about a source."""

    name: str
    share: float
    """Of the ids (or documents), by the mixture."""
    counts: Mapping[str, int]
    """Over all epochs: documents_in, documents_rendered, documents_split, ids, refused:REASON."""
    num_left_over: int
    """Documents that were rendered but not needed."""
    num_ids_left_over: int
    """Ids of these."""


def read_report(output: Path) -> dict[str, Any]:
    """Content of ``report.json``.

    Raises:
        FileNotFoundError: if the folder holds no finished build.
    """
    path = output / REPORT_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: no finished build is there; `seed-pack build` writes it")
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def read_counts(rendered: Sequence[Path]) -> Counter[str]:
    """Sum of what render tasks counted."""
    total: Counter[str] = Counter()
    for path in rendered:
        file = ItemsFile(path)
        total.update(file.counts)
        file.close()
    return total


def write_report(
    mixture: Mixture,
    output: Path,
    sources: Sequence[SourceReport],
    overlaps: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Check the balance and write ``report.json``; its presence says that the build is complete.

    Args:
        mixture: what was built.
        output: the folder of its packed shards, all of which are there.
        sources: of each source of the mixture, in order.
        overlaps: exact duplicates between sources, or within one; None where they were not looked for.

    Raises:
        ImbalanceError: naming the source whose documents or ids do not add up.
    """
    folder = PackedFolder(output)
    rows = [_source_row(*pair) for pair in zip(sources, folder.source_counts, strict=True)]
    padding = sum(footer.num_padding for footer in folder.footers)
    content = {
        "mixture": mixture.identity(),
        "components": mixture.components,
        "sequences": len(folder),
        "seq_length": folder.seq_length,
        "ids": folder.num_ids,
        "padding": padding,
        "padding_fraction": padding / (len(folder) * folder.seq_length),
        "sources": rows,
        "duplicates": None if overlaps is None else list(overlaps),
    }
    write_atomically(output / REPORT_NAME, json.dumps(content, indent=1).encode())
    return content


def _source_row(report: SourceReport, packed: SourceCounts) -> dict[str, Any]:
    """What became of one source. Raises ImbalanceError."""
    refused = {
        name.removeprefix(REFUSED): count
        for name, count in sorted(report.counts.items())
        if name.startswith(REFUSED)
    }
    num_documents = report.counts.get("documents_in", 0)
    accounted = packed.num_documents + sum(refused.values()) + report.num_left_over
    if num_documents != accounted:
        raise ImbalanceError(f"source {report.name}: {num_documents} documents in, {accounted} accounted for")
    num_rendered = report.counts.get("ids", 0)
    if num_rendered != packed.num_ids + report.num_ids_left_over:
        raise ImbalanceError(
            f"source {report.name}: {num_rendered} ids rendered, {packed.num_ids} packed and"
            f" {report.num_ids_left_over} left over"
        )
    return {
        "name": report.name,
        "share": report.share,
        "documents_in": num_documents,
        "documents_packed": packed.num_documents,
        "documents_refused": refused,
        "documents_left_over": report.num_left_over,
        "documents_split": report.counts.get("documents_split", 0),
        "ids": packed.num_ids,
        "ids_left_over": report.num_ids_left_over,
        "ids_learned": packed.num_learned,
        "images": packed.num_images,
    }
