"""``seed-shards``: look at folders of token shards.

    seed-shards info DIR                  what is in it
    seed-shards status DIR [--input ...]  what is done, missing and failed
    seed-shards validate DIR              check every file
    seed-shards show DIR [--limit N]      print documents
    seed-shards show DIR --nearest QUERY  images with the most similar embeddings
    seed-shards report DIR                one HTML page: counts, quarantine, code usage, documents
    seed-shards clean DIR                 remove what killed runs left behind

DIR is a local path or a URL. Exit status: 0 in order, 1 something is wrong or missing, 2 wrong usage.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.closed_pipe import stdout_has_no_reader, until_reader_leaves
from pipeline.counted import counted
from pipeline.inputs import expand_inputs
from pipeline.report import write_report
from pipeline.shard_task import TOKEN_SHARD_SUFFIX
from pipeline.storage import STALE_AFTER_S, open_folder
from pipeline.token_dataset import TokenDataset
from pipeline.validate_shards import PER_IMAGE, DatasetSummary, find_faults, summarize
from schemas import __version__
from schemas.document import Document, TextSegment
from schemas.one_line_parser import OneLineParser
from schemas.token_shard import read_documents

MAX_LISTED = 20
CHARS_SHOWN = 400
CODES_SHOWN = 8

Command = Callable[[TokenDataset, argparse.Namespace, TextIO], int]


def main(arguments: Sequence[str] | None = None, output: TextIO | None = None) -> int:
    """Run one command; returns the exit status."""
    with until_reader_leaves():  # `seed-shards show DIR | head`
        options = make_parser().parse_args(arguments)
        output = output or sys.stdout
        try:
            return COMMANDS[options.command](TokenDataset.open(open_folder(options.folder)), options, output)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) and stdout_has_no_reader():
                raise
            print(f"error: {error}", file=sys.stderr)
            return 2


def make_parser() -> argparse.ArgumentParser:
    """The command line; one subcommand for each entry of ``COMMANDS``."""
    parser: argparse.ArgumentParser = OneLineParser(
        "seed-shards", description="Look at folders of token shards."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "info": "counts, bytes per image, fingerprint",
        "status": "what is done, missing and failed, and what was quarantined",
        "validate": "check every file against schema, footer, ledger and conservation",
        "show": "print a few documents",
        "report": "write one self-contained HTML page: counts, quarantine, code usage, documents",
        "clean": "remove unfinished files and ledgers that killed or replaced attempts left behind",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", metavar="DIR", help="folder of token shards: a path or URL")
        if name in ("info", "status"):
            command.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "status":
            text = "source shards, to see what is missing"
            command.add_argument("--input", nargs="+", default=[], help=text)
        if name == "show":
            command.add_argument("--shard", help="name of one token shard (default: the first)")
            command.add_argument("--start", type=_count, default=0, help="documents to pass over")
            command.add_argument("--limit", type=_count, default=3, help="documents, or images, to print")
            text = "a picture, a file of codes or a key: show the images with the most similar embeddings"
            command.add_argument("--nearest", metavar="QUERY", help=text)
            command.add_argument("--tokenizer", default="sample", help="with --nearest: what made the codes")
            text = "with --nearest: compare what pictures are drawn from, or the causal embeddings"
            command.add_argument("--space", choices=("generation", "causal"), default="generation", help=text)
        if name == "report":
            command.add_argument("--output", type=Path, default=Path("report.html"), help="file to write")
            command.add_argument("--limit", type=_count, default=12, help="documents to show")
            command.add_argument(
                "--sources", type=Path, help="folder of the source shards, if they were moved since"
            )
            command.add_argument(
                "--images", type=Path, help="folder of the pictures of Parquet or JSON files, if it was moved"
            )
        if name == "clean":
            hours = STALE_AFTER_S / 3600
            text = f"leave younger files alone, a live run may own them (default {hours:g})"
            command.add_argument("--older-than-hours", type=float, default=hours, help=text)
    return parser


def _count(text: str) -> int:
    """A number of documents on the command line."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def print_info(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """What the folder holds."""
    summary = summarize(dataset)
    fields: dict[str, object] = {
        "kind": dataset.manifest.kind,
        "format_version": dataset.manifest.format_version,
        "fingerprint": dataset.manifest.fingerprint.hex,
        "tokenizer": _short(dict(dataset.manifest.fingerprint.components)),
        "settings": _short(dict(dataset.manifest.settings)),
        "token_shards": summary.num_shards,
        "documents": summary.counts.documents_written,
        "images": summary.counts.images_written,
        "bytes": summary.num_bytes,
        "bytes_per_image": round(summary.bytes_per_image, 1),
        "samples_quarantined": summary.counts.num_quarantined,
    }
    if not options.json:
        fields["bytes_per_image"] = f"{summary.bytes_per_image:,.1f} {PER_IMAGE}"
    _print_fields(fields, options.json, output)
    return _complain_unreadable(summary, output)


def print_status(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """What is done, missing and failed; 1 if anything is."""
    summary = summarize(dataset)
    done, failures = dataset.done(), dataset.failures()
    wanted = [shard.name for shard in expand_inputs(options.input)] if options.input else []
    missing = [name for name in wanted if name not in done and name not in failures]
    failed = {name: failure.error for name, failure in failures.items() if name not in done}
    counts = summary.counts
    fields: dict[str, object] = {
        "done": len(done),
        "missing": len(missing) if options.input else "unknown (give --input)",
        "failed": len(failed),
        "damaged_sources": len(summary.incomplete),
        "samples_read": counts.samples_read,
        "documents_written": counts.documents_written,
        "samples_quarantined": dict(counts.samples_quarantined),
        "images_dropped": dict(counts.images_dropped),
        "notes": dict(counts.notes),
        "conservation": counts.imbalance() or "holds",
    }
    if options.json:
        fields |= {"missing_shards": missing, "failed_shards": failed, "damaged_shards": summary.incomplete}
    _print_fields(fields, options.json, output)
    if not options.json:
        _list("missing", missing, output)
        _list("failed", [f"{name}: {error}" for name, error in failed.items()], output)
        in_part = [name for name in summary.incomplete if name not in set(summary.unread)]
        _list("read in part, its source is damaged:", in_part, output)
        _list("nothing could be read, its source is damaged:", summary.unread, output)
    is_bad = bool(missing or failed or counts.imbalance())
    return max(int(is_bad), _complain_unreadable(summary, output))


def print_faults(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """Check every file; 1 if something is wrong."""
    num_faults = 0
    for fault in find_faults(dataset):
        num_faults += 1
        print(fault, file=output)
    for name in dataset.left_over_ledgers():
        print(f"note: {name}: no token shard names this ledger; `seed-shards clean` removes it", file=output)
    num_shards = len(dataset.done())
    print(f"{counted(num_shards, 'token shard')} checked, {counted(num_faults, 'fault')}", file=output)
    if num_faults:
        print("to make a token shard anew: delete NAME.parquet and run the job again", file=output)
    return int(num_faults > 0)


def print_documents(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """Print a few documents for a human, or the images nearest to a query."""
    if options.nearest is not None:
        from pipeline.nearest import print_nearest  # torch, which the other commands do without

        return print_nearest(
            dataset, options.nearest,
            tokenizer=options.tokenizer, space=options.space, shard=options.shard, limit=options.limit,
            output=output,
        )  # fmt: skip
    names = sorted(dataset.done())
    if not names:
        raise ValueError(f"{dataset.folder.url}: holds no token shard yet")
    name = options.shard.removesuffix(TOKEN_SHARD_SUFFIX) if options.shard else names[0]
    if name not in names:
        raise ValueError(f"{dataset.folder.url}: no token shard {name}; the first is {names[0]}")
    documents = read_documents(**dataset.folder.parquet_source(name + TOKEN_SHARD_SUFFIX))
    shown = list(itertools.islice(documents, options.start, options.start + options.limit))
    for document in shown:
        print("\n".join(document_lines(document)), file=output)
    if not shown:
        number = dataset.footer(name).counts.documents_written
        print(f"{name} has {number} documents, none at --start {options.start}", file=output)
    return 0


def document_lines(document: Document) -> list[str]:
    """One document, a line for each segment."""
    lines = [f"--- {document.key}"]
    for segment in document.segments:
        role = f"{segment.role}: " if segment.role else ""
        if isinstance(segment, TextSegment):
            text = segment.text if len(segment.text) <= CHARS_SHOWN else segment.text[:CHARS_SHOWN] + " ..."
            lines.append(f"  {role}{json.dumps(text, ensure_ascii=False)}")
        else:
            first = " ".join(str(code) for code in segment.codes[:CODES_SHOWN])
            time = "" if segment.time_s is None else f" at {segment.time_s:.2f} s"
            lines.append(f"  {role}<image{time}: {first} ...>")
    if document.metadata:
        lines.append(f"  metadata {document.metadata[:CHARS_SHOWN]}")
    return lines


def clean(dataset: TokenDataset, options: argparse.Namespace, output: TextIO) -> int:
    """Remove what killed runs left behind; files of a live run are younger and stay."""
    folder, older_than_s = dataset.folder, options.older_than_hours * 3600
    stale = folder.stale_temporaries(older_than_s)
    # A ledger is committed a moment before its token shard: a young one may be about to be named.
    stale += [
        name for name in dataset.left_over_ledgers() if time.time() - folder.modified_s(name) > older_than_s
    ]
    for name in stale:
        folder.remove(name)
        print(f"removed {name}", file=output)
    older = f"older than {options.older_than_hours:g} hours (--older-than-hours)"
    print(f"{len(stale)} unfinished files and ledgers of no token shard, {older}, removed", file=output)
    return 0


COMMANDS: dict[str, Command] = {
    "info": print_info,
    "status": print_status,
    "validate": print_faults,
    "show": print_documents,
    "report": write_report,
    "clean": clean,
}


def _short(fields: dict[str, object]) -> dict[str, object]:
    """Without what takes more than a line."""
    return {name: value for name, value in fields.items() if len(str(value)) <= 200}


def _print_fields(fields: dict[str, object], as_json: bool, output: TextIO) -> None:
    if as_json:
        print(json.dumps(fields), file=output)
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        shown = json.dumps(value) if isinstance(value, dict) else value
        print(f"{name.ljust(width)}  {shown}", file=output)


def _list(title: str, lines: list[str], output: TextIO) -> None:
    for line in lines[:MAX_LISTED]:
        print(f"{title} {line}", file=output)
    if len(lines) > MAX_LISTED:
        print(f"{title} {len(lines) - MAX_LISTED} more (--json lists all)", file=output)


def _complain_unreadable(summary: DatasetSummary, output: TextIO) -> int:
    for line in summary.unreadable:
        print(f"unreadable: {line}", file=output)
    return int(bool(summary.unreadable))


if __name__ == "__main__":
    sys.exit(main())
