"""What the tokenization jobs share: plan, run, say how it ended."""

import os
import sys
from collections.abc import Callable

from jobs.command_line import EXIT_FAILED, StopSignal
from pipeline.absent_fields import absent_fields
from pipeline.counted import counted, were
from pipeline.ray_cluster import travels_with_its_folder
from pipeline.run_plan import TokenizeJob, make_plan
from pipeline.shard_driver import FatalShardError, PoolError
from pipeline.tokenize_config import TokenizeConfig
from pipeline.tokenize_run import RunOutcome, run_tokenization
from pipeline.validate_shards import PER_IMAGE

TOKENIZE_ERRORS = (FatalShardError, PoolError)
MAX_PROBLEMS_SHOWN = 20


def run_tokenize_job(config: TokenizeConfig, job: TokenizeJob) -> int:
    """Run a tokenization job and print the result; returns the exit status.

    0: everything is in order (quarantined samples are in order: they are counted and listed).
    1: source shards failed, counts do not add up, not one sample could be used, or with --strict a source
        shard was damaged.
    130, 143: ended by a signal; the same command goes on.
    """
    with StopSignal() as stop:
        return _run(config, job, stop)


def _run(config: TokenizeConfig, job: TokenizeJob, stop: StopSignal) -> int:
    if travels_with_its_folder() and "://" not in config.output and not os.path.isabs(config.output):
        raise ValueError(
            f"--output {config.output}: a submitted job runs in a copy of its working directory, which Ray"
            " removes; give an absolute path that all nodes see, or a URL"
        )
    plan = make_plan(config, job)
    if config.dry_run:
        print("\n".join(plan.lines()))
        return 0
    outcome = run_tokenization(config, job, plan, stop.is_set)
    _print_summary(outcome)
    _warn_of_absent_fields(outcome, job)
    if stop.is_set() and outcome.was_stopped:
        print("stopped by a signal; run the same command again to go on", file=sys.stderr)
        return stop.exit_status
    problems = outcome.problems(config.strict)
    for line in problems[:MAX_PROBLEMS_SHOWN]:
        print(f"error: {line}", file=sys.stderr)
    if outcome.failures:
        print(
            f"error: {counted(len(outcome.failures), 'source shard')} failed; --retry-failed tries again",
            file=sys.stderr,
        )
    return EXIT_FAILED if problems else 0


def _print_summary(outcome: RunOutcome) -> None:
    progress, plan = outcome.progress, outcome.plan
    before = f"{were(plan.num_done)} there before"
    if not plan.to_do:
        print(f"nothing to do: {counted(plan.num_done, 'token shard')} {before}, in {plan.output}")
    else:
        written = counted(progress.num_done, "token shard")
        print(f"{written} written to {plan.output} ({plan.num_done:,} {before})")
        _print_counts(outcome)
    for reason, number in progress.quarantined.most_common():
        print(f"  quarantined {counted(number, 'sample')}: {reason}")
    damaged = _warn_of_damage(outcome)
    if progress.quarantined or damaged:
        print(f"  {plan.output}/NAME.quarantine-*.jsonl, beside each token shard, says which, where and why")


def _warn_of_absent_fields(outcome: RunOutcome, job: TokenizeJob) -> None:
    """Say which metadata fields no document of this run's first token shards has."""
    done = outcome.folder.done() if outcome.progress.num_done else set()
    tasks = [task for task in outcome.plan.to_do if task.name in done]
    if warning := absent_fields(outcome.folder, job, tasks):
        print(f"warning: {warning}")


def _warn_of_damage(outcome: RunOutcome) -> bool:
    """Say which source shards are damaged; returns whether any is."""
    damaged, unread = outcome.damaged(), outcome.unread()
    in_part = [name for name in damaged if name not in unread]
    if unread:
        number = counted(len(unread), "damaged source shard")
        print(f"warning: nothing could be read of {number}: {_listed(unread, outcome.damage_of)}")
    if in_part:
        are = "is" if len(in_part) == 1 else "are"
        print(
            f"warning: {counted(len(in_part), 'source shard')} {are} damaged and {were(len(in_part))} read in"
            f" part: {_listed(in_part, str)}"
        )
    return bool(damaged)


def _listed(names: list[str], spell: Callable[[str], str]) -> str:
    """The first few, and whether there are more."""
    return ", ".join(map(spell, names[:5])) + (" ..." if len(names) > 5 else "")


def _print_counts(outcome: RunOutcome) -> None:
    counts = outcome.progress.counts
    print(
        f"  {counted(counts.documents_written, 'document')}, {counted(counts.images_written, 'image')}, "
        f"{outcome.progress.elapsed_s:,.1f} s"
    )
    if outcome.dataset is not None and outcome.dataset.counts.images_written:
        print(f"  {outcome.dataset.bytes_per_image:,.1f} bytes an image in the folder, {PER_IMAGE}")
