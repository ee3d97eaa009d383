"""All benchmarks in a short mode, one after another, as one table; and docs/performance.md from such runs.

    python -m benchmarks.run                                 # some five minutes on two cores
    python -m benchmarks.run --only encoder decode --json benchmarks/results/2026-11-30-two-cores.json
    python -m benchmarks.run --write docs/performance.md     # nothing is measured

``--json`` keeps what the file holds of other benchmarks: a run may be done in parts, or one figure again.
Each benchmark runs in a process of its own, which neither shares memory with the others nor can end them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.short_runs import SHORT_RUNS, ShortRun
from benchmarks.table import HEAD, Row, markdown, plain
from schemas.atomic_write import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Record = dict[str, Any]
"""A benchmark's part of a results file: ``benchmark``, ``rows``, and how they came about."""


class BenchmarkError(RuntimeError):
    """A benchmark did not end well; the message is the end of what it wrote."""


def measure(name: str, run: ShortRun, has_gpu: bool) -> Record:
    """Run one benchmark.

    Raises:
        BenchmarkError: if it fails or takes too long.
    """
    flags = run.gpu_flags if has_gpu and run.gpu_flags is not None else run.flags
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        output = ["--json", str(file)] if run.output == "file" else []
        command = ["-m", f"benchmarks.{run.module or name}", *flags]
        try:
            done = subprocess.run(
                [sys.executable, *command, *output],
                cwd=ROOT,
                env={**os.environ, **dict(run.environment)},
                capture_output=True,
                text=True,
                timeout=run.timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"took more than {run.timeout_s:g} s") from error
        if done.returncode:
            raise BenchmarkError(f"exit status {done.returncode}: {done.stderr.strip()[-400:]}")
        figures: Any = done.stdout
        if run.output == "file":
            figures = json.loads(file.read_bytes())
        elif run.output == "lines":
            figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    try:
        rows = run.rows(figures)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BenchmarkError(f"its figures are not those that short_runs.py expects: {error!r}") from error
    settings = [f"{key}={value}" for key, value in run.environment]
    return {
        "benchmark": name,
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": " ".join([*settings, "python", *command]),
        "load": round(load, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "rows": [asdict(row) for row in rows],
    }


def commit() -> str:
    """What was measured; ``+`` marks changes that were not committed."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def device() -> str:
    """The machine in words: its GPU or processor, cores, Python and torch."""
    import torch

    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    version = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{gpu}{os.cpu_count()} cores of {processor}, {version}"


def measure_all(names: Iterable[str], has_gpu: bool) -> Iterator[Record]:
    """Run benchmarks in order; one that is left out or fails has a reason in place of rows."""
    for name in names:
        run = SHORT_RUNS[name]
        if run.needs_gpu and not has_gpu:
            yield {"benchmark": name, "left_out": "no GPU here"}
            continue
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            record = measure(name, run, has_gpu)
            print(f"{record['seconds']:.0f} s", file=sys.stderr)
            yield record
        except BenchmarkError as error:
            print("failed", file=sys.stderr)
            yield {"benchmark": name, "failed": str(error)}


def lines(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows of the table."""
    return [Row(**row).cells(record["benchmark"]) for record in records for row in record.get("rows", ())]


def merge(path: Path, records: Sequence[Record]) -> dict[str, Any]:
    """The content of a results file with new records in it, in the order of the catalogue.

    Raises:
        ValueError: if the file was measured on another machine.
    """
    before = json.loads(path.read_bytes()) if path.exists() else {"device": device(), "records": []}
    if before["device"] != device():
        raise ValueError(f"{path} was measured on {before['device']}; write to a file of another name")
    measured = {record["benchmark"]: record for record in before["records"]}
    measured |= {record["benchmark"]: record for record in records if "failed" not in record}
    order = list(SHORT_RUNS)
    return before | {
        "records": sorted(measured.values(), key=lambda record: order.index(record["benchmark"]))
    }


def render(folder: Path = RESULTS) -> str:
    """What the results files of a folder say, as Markdown."""
    parts = []
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        content = json.loads(path.read_bytes())
        records = content["records"]
        parts.append(f"## {content.get('title', path.stem)}\n\n{content['device']}. Results: `{path.name}`.")
        if "note" in content:
            parts.append(content["note"])
        parts.append(markdown(HEAD, lines(records)))
        head = ("benchmark", "command", "date", "commit", "load", "seconds")
        runs = [
            [f"`{record[name]}`" if name == "command" else str(record.get(name, "-")) for name in head]
            for record in records
            if "rows" in record
        ]
        parts.append("How, with the load of the machine before each run:\n\n" + markdown(head, runs))
        left_out = [f"- {r['benchmark']}: {r['left_out']}" for r in records if "left_out" in r]
        if left_out:
            parts.append("Left out:\n\n" + "\n".join(left_out))
    return "\n\n".join(parts)


def write(page: Path, folder: Path = RESULTS) -> None:
    """Replace what stands between the markers of a page; what is written around them stays."""
    text = page.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{head}\n\n{render(folder)}\n\n{tail}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or write the page; 1 if a benchmark failed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(SHORT_RUNS), default=list(SHORT_RUNS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, help="results file to add to")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the figures of benchmarks/results")
    options = parser.parse_args(arguments)
    if options.write:
        write(options.write)
        return 0
    import torch

    records = []
    for record in measure_all(options.only, torch.cuda.is_available()):
        records.append(record)
        if options.json:  # after each, so that an end from outside costs one
            content = json.dumps(merge(options.json, [record]), indent=1, ensure_ascii=False) + "\n"
            write_atomically(options.json, content.encode())
    print(plain(HEAD, lines(records)))
    for record in records:
        for key in ("left_out", "failed"):
            if key in record:
                print(f"{record['benchmark']}: {key.replace('_', ' ')}: {record[key]}")
    return int(any("failed" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
