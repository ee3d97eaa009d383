"""Kill the job at random, again and again, and compare the rows with an undisturbed run, byte for byte.

    python -m benchmarks.kills [--kills 200] [--seed 0] [--shards 12]

Each kill is SIGKILL or SIGTERM to the process of the job at a random moment, or SIGKILL by itself at a chosen
point of the commit. After each, what is visible must be whole; when a run ends by itself, everything must be
equal to the undisturbed run, and the folder is begun anew.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline.fault_points import VARIABLE
from pipeline.storage import LocalFolder
from pipeline.token_dataset import TokenDataset
from pipeline.validate_shards import find_faults
from tests.pipeline.tiny_shards import job_command, job_environment, run_job, token_files, write_shards

POINTS = ("start", "reading", "after_write", "after_ledger", "after_commit")


def run_and_kill(flags: list[str], rng: random.Random, num_shards: int, whole_run_s: float) -> str:
    """One run that is killed, in one of several ways; says how it ended."""
    command = job_command(*flags)
    if rng.random() < 0.4:
        point = rng.choice(POINTS)
        fault = f"kill:{point}:{rng.randrange(num_shards):05}"
        environment = job_environment({VARIABLE: fault})
        status = subprocess.run(command, env=environment, capture_output=True).returncode
        assert status in (0, -signal.SIGKILL), f"the job failed by itself with status {status}"
        return f"SIGKILL at {point}" if status else "ended"
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=job_environment(), **silent)
    try:
        process.wait(timeout=rng.uniform(0.2, 1.0) * whole_run_s)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    status = process.wait(timeout=120)
    assert status in (0, -number, 128 + number), f"the job failed by itself with status {status}"
    return f"{number.name} at random" if status else "ended"


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--samples", type=int, default=40)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        shards = write_shards(root / "in", options.shards, options.samples)
        begin = time.monotonic()
        assert run_job("--input", str(shards), "--output", str(root / "undisturbed")).returncode == 0
        whole_run_s = time.monotonic() - begin
        undisturbed = token_files(root / "undisturbed")
        folder = root / "out"
        flags = ["--input", str(shards), "--output", str(folder)]
        kinds: Counter[str] = Counter()
        num_kills = num_complete = num_different = 0
        while num_kills < options.kills:
            how = run_and_kill(flags, rng, options.shards, whole_run_s)
            kinds[how] += 1
            if sum(kinds.values()) % 20 == 0:
                print(f"{num_kills} kills so far, {num_different} differ", flush=True)
            num_kills += how != "ended"
            files = token_files(folder)
            num_different += any(data != undisturbed[name] for name, data in files.items())
            if how == "ended" or files == undisturbed:
                faults = list(find_faults(TokenDataset.open(LocalFolder(folder))))
                num_different += files != undisturbed or bool(faults)
                num_complete += 1
                shutil.rmtree(folder)
    print(f"{num_kills} kills, {num_complete} runs ended, {num_different} differ from the undisturbed run")
    for how, number in sorted(kinds.items()):
        print(f"  {number:4}  {how}")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main())
