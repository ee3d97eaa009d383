"""Kill builds of a packed set at random, again and again, and compare with an undisturbed one, byte for byte.

    python -m benchmarks.packing_kills [--kills 50] [--seed 0]

Each kill is SIGKILL or SIGTERM at a random moment: to a build in one process, to the driver of a build with
two workers, or to one of the workers (Linux). After each, every packed shard that is visible must be the
undisturbed one, and no process may be left; when a build ends by itself, all must be equal, and the folder is
begun anew.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from pipeline.packing.build_report import REPORT_NAME
from tests.packing.corpus import mixture_text, write_corpus
from tests.packing.test_run_tasks import is_running

KINDS = ("alone", "driver", "worker")
HANGS_AFTER_S = 600


def packed_files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("packed-*.parquet")}


def start_build(mixture: Path, output: Path, num_workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.packing.cli", "build", str(mixture)]
    command += ["--output", str(output), "--workers", str(num_workers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers_of(driver: int) -> list[int]:
    """Process ids of a build's workers."""
    try:
        children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except FileNotFoundError:  # one of them has just ended
        return []


def build_and_kill(mixture: Path, output: Path, rng: random.Random, usual_s: float) -> str:
    """One build that is killed in one of several ways within ``usual_s``; says how it ended."""
    kind = rng.choice(KINDS)
    num_workers = 1 if kind == "alone" else 2
    number = signal.SIGKILL if kind == "worker" else rng.choice([signal.SIGKILL, signal.SIGTERM])
    process = start_build(mixture, output, num_workers)
    with suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.3, 1.0) * usual_s)
    workers = workers_of(process.pid)
    while kind == "worker" and not workers and process.poll() is None:  # between two stages
        time.sleep(0.01)
        workers = workers_of(process.pid)
    if kind != "worker":
        process.send_signal(number)
    elif workers:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), number)
    status = process.wait(timeout=HANGS_AFTER_S)
    deadline = time.monotonic() + 20
    while left := [worker for worker in workers if is_running(worker)]:
        assert time.monotonic() < deadline, f"workers {left} outlived their driver"
        time.sleep(0.05)
    expected = {0, 1} if kind == "worker" else {0, -number, 128 + number}
    assert status in expected, f"the build failed by itself with status {status}"
    return f"{number.name} to the {kind}" if status else "ended"


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = write_corpus(Path(temporary), num_pairs=600, num_pages=60)
        mixture, output = root / "mixture.yaml", root / "out"
        mixture.write_text(mixture_text(deduplicate="true", output="{ids: 60000}"))
        begin = time.monotonic()
        assert start_build(mixture, root / "undisturbed", num_workers=1).wait() == 0
        usual_s = time.monotonic() - begin
        undisturbed = packed_files(root / "undisturbed")
        kinds: Counter[str] = Counter()
        num_different = num_complete = 0
        while not num_complete or kinds.total() - kinds["ended"] < options.kills:
            how = build_and_kill(mixture, output, rng, usual_s)
            kinds[how] += 1
            files = packed_files(output)
            num_different += any(data != undisturbed[name] for name, data in files.items())
            if how == "ended":
                is_clean = {path.name for path in output.iterdir()} == {*undisturbed, REPORT_NAME}
                num_different += files != undisturbed or not is_clean
                num_complete += 1
                shutil.rmtree(output)
            num_kills = kinds.total() - kinds["ended"]
            print(f"{num_kills} kills, {num_complete} ended, {num_different} differ: {how}", flush=True)
    num_kills = kinds.total() - kinds["ended"]
    print(
        f"{num_kills} kills, {num_complete} builds ended, {num_different} differ from the undisturbed build"
    )
    for how, count in sorted(kinds.items()):
        print(f"  {count:4}  {how}")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main())
