#!/usr/bin/env python
"""Draw the metrics of training runs, also of runs that still go on: `curves.html` beside `metrics.jsonl`.

    python jobs/curves.py out/pretrain_tiny [...]

The stages of `jobs/train_tokenizer.py` leave such a file as well.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.command_line import run_job
from schemas.one_line_parser import OneLineParser
from trainer.curves_page import write_curves


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that hold a metrics.jsonl")
    for folder in parser.parse_args(arguments).runs:
        print(write_curves(folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
