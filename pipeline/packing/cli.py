"""Packed sets from a mixture file: plan, build, validate, show, report, export.

seed-pack plan mixture.yaml --global-batch 256   what a build would give, in seconds
seed-pack build mixture.yaml --output packed     build, or continue a build that was interrupted
seed-pack validate packed                        every row against the contract
seed-pack show packed --row 3 --trace            a row made readable, and where it came from
seed-pack report packed                          report.html: shares, lengths, padding
seed-pack export packed --output megatron/seed   Megatron-LM's .bin and .idx
seed-pack --version
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from pipeline.closed_pipe import until_reader_leaves
from pipeline.one_line_errors import in_one_line
from pipeline.packing.build import Build
from pipeline.packing.build_folder import BuildError
from pipeline.packing.forecast import SAMPLE_SIZE, Forecast, forecast
from pipeline.packing.html_report import write_html_report
from pipeline.packing.megatron_export import LossMask, LossMaskLostError, export_megatron
from pipeline.packing.mixture_file import load_mixture
from pipeline.packing.render_task import FILTER_PREFIX
from pipeline.packing.run_tasks import Executor, TaskFailedError
from pipeline.packing.show import in_bold, in_stars, spell_row, trace_row
from pipeline.shard_driver import PoolError
from pipeline.token_dataset import MANIFEST_NAME
from schemas import __version__
from schemas.mixture import MixtureError
from schemas.packed_check import check_packed_shard
from schemas.packed_folder import PackedFolder
from schemas.packed_shard import PackedShardError
from schemas.settings import suggestion
from tokenizer.text_backend import TextTokenizerError
from tokenizer.text_tokenizer import TextTokenizer, load_text_tokenizer

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE = 1, 2
MORE_SAMPLED = 10
"""Times the sample that is advised where nothing of it is left."""


class UsageError(ValueError):
    """A flag that cannot be used."""


def plan(
    mixture: tyro.conf.Positional[Path], /, *, global_batch: int = 256, sample: int = SAMPLE_SIZE
) -> int:
    """Forecast a build from footers and a sample: documents, ids, epochs, padding, steps.

    Args:
        mixture: the mixture file.
        global_batch: sequences of one optimizer step over all ranks.
        sample: documents of each source to look at.
    """
    for name, value in (("global-batch", global_batch), ("sample", sample)):
        if value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    result = forecast(load_mixture(mixture), sample)
    print(format_forecast(result, global_batch))
    _judge_empty_sources(result, mixture)
    return 0


def _judge_empty_sources(result: Forecast, mixture: Path) -> None:
    """Warn of sources whose sample leaves nothing.

    Raises:
        UsageError: if nothing is left of a whole source, where a build stops too, or of any source.
    """
    empty = [source for source in result.sources if not source.kept_fraction]
    if certain := [source.name for source in empty if source.is_certain]:
        raise UsageError(f"nothing is left of {', '.join(certain)}, see above: change {mixture}")
    if len(empty) == len(result.sources):
        names = ", ".join(source.name for source in empty)
        raise UsageError(
            f"nothing of the sample is left of {names}, see above: change {mixture}, or look at more with"
            f" --sample {MORE_SAMPLED * max(source.num_sampled for source in empty)}"
        )
    for source in empty:
        logger.warning(
            "warning: source %s: nothing is left of the %s documents sampled of %s, and the forecast counts"
            " nothing of it; --sample %d looks at more",
            source.name,
            f"{source.num_sampled:,}",
            f"{source.documents:,}",
            min(MORE_SAMPLED * source.num_sampled, source.documents),
        )


def build(
    mixture: tyro.conf.Positional[Path], /, *, output: Path, workers: int = 1, ray: bool = False
) -> int:
    """Build a packed set, or continue one; a finished build is left as it is.

    Args:
        mixture: the mixture file.
        output: folder of the packed shards; intermediate files stand in its ``.build`` until the end.
        workers: processes, or with --ray tasks at a time (0: as many as the cluster has CPUs).
        ray: run on the Ray cluster of RAY_ADDRESS, or on a local one.
    """
    if workers < (0 if ray else 1):
        raise UsageError(f"--workers must be at least 1 (with --ray 0: all CPUs), got {workers}")
    report = Build(load_mixture(mixture), output, Executor(workers, use_ray=ray)).run()
    print(
        f"{output}: {report['sequences']:,} sequences of {report['seq_length']} ids,"
        f" {report['padding_fraction']:.3%} padding"
    )
    for source in report["sources"]:
        print(
            f"  {source['name']}: {source['documents_packed']:,} documents, {source['ids']:,} ids,"
            f" {spell_refusals(source['documents_refused'])}"
        )
    return 0


def validate(folder: tyro.conf.Positional[Path], /) -> int:
    """Hold every row of a packed set against the contract and its footer.

    Args:
        folder: folder of packed shards.
    """
    packed = PackedFolder(_check_is_packed(folder))
    num_bad = 0
    for path in packed.paths:
        try:
            footer = check_packed_shard(path)
            print(f"{path}: {footer.num_sequences:,} sequences, {footer.num_ids:,} ids, sound")
        except PackedShardError as error:
            num_bad += 1
            print(error)
    print(f"{len(packed.paths) - num_bad} of {len(packed.paths)} packed shards are sound")
    return EXIT_FAILED if num_bad else 0


def show(
    folder: tyro.conf.Positional[Path],
    /,
    *,
    row: int = 0,
    limit: int = 1,
    trace: bool = False,
    text_tokenizer: str | None = None,
    root: Path | None = None,
) -> int:
    """Print rows: text, [image: key], and what is learned in bold (in a file or pipe: between **).

    Args:
        folder: folder of packed shards.
        row: first row, in stored order.
        limit: rows to print.
        trace: one line per document with its shard, row, key, epoch and part instead of its content.
        text_tokenizer: the one to spell with, where the one that the footer names is not found from here.
        root: folder of the mixture file, which names of input files are relative to.
    """
    packed = PackedFolder(_check_is_packed(folder))
    spelling = None if trace else _tokenizer_of(packed, text_tokenizer, root)
    emphasise = in_bold if sys.stdout.isatty() or os.environ.get("FORCE_COLOR") else in_stars
    for index in range(row, max(min(row + limit, len(packed)), row + 1)):
        sequence, traces = packed[index], trace_row(packed, index, root)
        print(f"--- row {index}: {len(traces)} documents, {sequence.num_ids} ids")
        if spelling is None:
            for item in traces:
                part = f" part {item.part}" if item.part else ""
                print(
                    f"{item.source}\t{item.shard}:{item.row}\tkey {item.key}\tepoch {item.epoch}{part}"
                    f"\t{item.num_ids} ids, {item.num_learned} learned"
                )
            continue
        texts = spell_row(sequence, packed, spelling, traces, emphasise=emphasise)
        for item, text in zip(traces, texts, strict=True):
            print(f"[{item.source}] {text}")
    return 0


def _check_is_packed(folder: Path) -> Path:
    """The folder, or UsageError where it plainly is no packed set; what looks at token shards is named."""
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; `seed-pack build` makes packed sets")
    if (folder / MANIFEST_NAME).exists():
        raise UsageError(
            f"{folder}: token shards, no packed set; look at them with `seed-shards show {folder}`"
        )
    return folder


def _tokenizer_of(packed: PackedFolder, path: str | None, root: Path | None) -> TextTokenizer:
    """The text tokenizer that rows are spelled with. Raises TextTokenizerError with the remedy."""
    name = packed.footer.tokenizer.name
    local = (root or Path()) / name
    try:
        return load_text_tokenizer(path or (str(local) if local.exists() else name))
    except TextTokenizerError as error:
        raise TextTokenizerError(
            f"{error} (--root FOLDER-OF-THE-MIXTURE-FILE or --text-tokenizer PATH tells where it is)"
        ) from error


def report(folder: tyro.conf.Positional[Path], /) -> int:
    """Write report.html: shares against weights, lengths, padding, refusals.

    Args:
        folder: folder of a finished build.
    """
    print(write_html_report(_check_is_packed(folder)))
    return 0


def export(
    folder: tyro.conf.Positional[Path],
    /,
    *,
    output: Path,
    format: Literal["megatron"] = "megatron",
    loss_mask: LossMask | None = None,
) -> int:
    """Write the ids in another trainer's format.

    Args:
        folder: folder of packed shards.
        output: prefix of the files: ``seed`` gives ``seed.bin`` and ``seed.idx``.
        format: megatron: the .bin and .idx of Megatron-LM's IndexedDataset.
        loss_mask: needed where not everything is learned, as Megatron learns every id. file: also write
            ``seed_loss_mask.bin`` and ``.idx`` for a dataset class of your own; none: learn all.
    """
    files = export_megatron(PackedFolder(_check_is_packed(folder)), output, loss_mask)
    print(f"{', '.join(map(str, files.paths))}: {files.num_documents:,} documents, {files.num_ids:,} ids")
    if not files.is_all_learned:
        print(
            f"{files.num_learned:,} of them are learned by the packed set's loss mask;"
            f" Megatron's own GPTDataset learns all {files.num_ids:,}"
        )
    return 0


def spell_refusals(counts: Mapping[str, int]) -> str:
    """What the mixture itself left out is no fault and stands apart: it was asked for."""
    filtered = {name: count for name, count in counts.items() if name.startswith(FILTER_PREFIX)}
    refused = {name: count for name, count in counts.items() if name not in filtered}
    parts = [f"{sum(filtered.values()):,} left out by filters: {spell_counts(filtered)}"] if filtered else []
    parts.append(f"{sum(refused.values()):,} refused{': ' if refused else ''}{spell_counts(refused)}")
    return "; ".join(parts)


def spell_counts(counts: Mapping[str, int]) -> str:
    """``filter_where 12, template_no_text 1``."""
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def format_forecast(result: Forecast, batch: int) -> str:
    """The forecast as a table."""
    head = ("source", "documents", "kept", "ids each", "images", "epochs", "ids", "share")
    lines = ["{:<20}{:>12}{:>8}{:>10}{:>8}{:>9}{:>16}{:>8}".format(*head)]
    for source in result.sources:
        lines.append(
            f"{source.name:<20}{source.documents:>12,}{source.kept_fraction:>8.1%}{source.ids_per_document:>10.1f}"
            f"{source.images_per_document:>8.2f}{source.epochs:>9.3f}{source.ids:>16,.0f}{source.share:>8.1%}"
        )
        lines += [
            f"    of the sample {'left out by' if reason.startswith(FILTER_PREFIX) else 'refused:'}"
            f" {reason} {count:,}"
            for reason, count in source.refused
        ]
        if source.absent_fields:
            lines.append(
                f"    no document of the sample has {', '.join(source.absent_fields)}, which filters.where"
                " names; tokenization keeps fields with --pairs.metadata-fields and the like"
            )
        if not source.kept_fraction:
            lines.append("    nothing of the sample is left: check template, filters and text_field")
    lines.append(
        f"about {result.ids:,.0f} ids in {result.sequences:,} sequences of {result.seq_length}:"
        f" padding {result.padding_fraction:.2%}, {result.documents_split_fraction:.2%} of documents split,"
        f" {result.steps(batch):,} steps of {batch} sequences"
    )
    return "\n".join(lines)


COMMANDS: dict[str, Callable[..., int]] = {
    "plan": plan,
    "build": build,
    "validate": validate,
    "show": show,
    "report": report,
    "export": export,
}


def read_command(arguments: Sequence[str]) -> Callable[[], int]:
    """The call that a command line asks for.

    Raises:
        UsageError: a command, a flag or a value is wrong; in one line.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(f"{arguments[0]}: unknown command{suggestion(arguments[0], COMMANDS)}")
    later = {name: _later(command) for name, command in COMMANDS.items()}
    try:
        with in_one_line():
            call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                later, prog="seed-pack", args=list(arguments), description=__doc__
            )
            return call
    except ValueError as error:
        raise UsageError(str(error)) from error


def _later(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same signature, so the same command line; gives the call instead of making it."""

    @functools.wraps(command)
    def bind(*values: Any, **settings: Any) -> Callable[[], int]:
        return functools.partial(command, *values, **settings)

    return bind


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits with 0, 1 if something failed or is unsound, 2 if the input is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"seed-pack {__version__}")
        sys.exit(0)
    try:
        with until_reader_leaves():
            status = read_command(sys.argv[1:] if arguments is None else arguments)()
    except (
        MixtureError,
        TextTokenizerError,
        BuildError,
        PackedShardError,
        LossMaskLostError,
        UsageError,
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
        IndexError,
    ) as error:
        logger.error("error: %s", error)
        sys.exit(EXIT_USAGE)
    except (TaskFailedError, PoolError) as error:
        logger.error("error: %s", error)
        sys.exit(EXIT_FAILED)
    sys.exit(status)


if __name__ == "__main__":
    main()
