"""The job is killed at chosen points and at random; the next run ends with the same rows, byte for byte.

Each case is the real command in a process of its own. The 200 random kills of the record are in
`benchmarks/kills.py`.
"""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.fault_points import VARIABLE
from pipeline.inspect_shards import main as seed_shards
from tests.pipeline.tiny_shards import (
    job_command,
    job_environment,
    leftovers,
    run_job,
    token_files,
    write_shards,
)

NUM_SHARDS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("in"), NUM_SHARDS, 30)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    result = run_job("--input", str(shards), "--output", str(folder))
    assert result.returncode == 0, result.stderr
    files = token_files(folder)
    assert len(files) == 2 * NUM_SHARDS, "each shard has a ledger"
    return files


def assert_resumes(shards: Path, folder: Path, undisturbed: dict[str, bytes], *flags: str) -> None:
    """What is visible now is whole; the same command then ends with what an undisturbed run gives."""
    for name, data in token_files(folder).items():
        assert data == undisturbed[name], f"{name} is visible but not what it should be"
    result = run_job("--input", str(shards), "--output", str(folder), *flags)
    assert result.returncode == 0, result.stderr
    assert token_files(folder) == undisturbed
    assert seed_shards(["validate", str(folder)]) == 0


@pytest.mark.parametrize("point", ["start", "reading", "after_write", "after_ledger", "after_commit"])
def test_sigkill_at_a_chosen_point(
    point: str, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = run_job(
        "--input", str(shards), "--output", str(folder), environment={VARIABLE: f"kill:{point}:00002"}
    )
    assert result.returncode == -signal.SIGKILL
    assert ("00002.parquet" in token_files(folder)) == (point == "after_commit")
    done_before = {name: path.stat().st_ino for name in token_files(folder) if (path := folder / name)}
    assert_resumes(shards, folder, undisturbed)
    kept = {name for name, inode in done_before.items() if (folder / name).stat().st_ino == inode}
    assert {name for name in done_before if name.endswith(".parquet")} <= kept, "done shards were done again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_at_a_random_moment(
    number: signal.Signals, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = job_command("--input", str(shards), "--output", str(folder))
    process = subprocess.Popen(command, env=job_environment(), stderr=subprocess.PIPE, text=True)
    while not folder.exists():
        time.sleep(0.005)
        assert process.poll() is None
    time.sleep(random.uniform(0.0, 0.3))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode in (-signal.SIGKILL, 0)
    elif process.returncode != 0:  # 0: it was done before the signal came
        assert process.returncode == 128 + number, errors
        assert "run the same command again" in errors
        assert leftovers(folder) == [], "a run that is asked to end cleans up"
        assert "Traceback" not in errors
    assert_resumes(shards, folder, undisturbed)


def test_many_random_kills_of_one_run(shards: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    rng = random.Random(5)
    for _ in range(6):
        points = ["start", "reading", "after_write", "after_ledger", "after_commit"]
        fault = f"kill:{rng.choice(points)}:{rng.randrange(NUM_SHARDS):05}"
        run_job("--input", str(shards), "--output", str(folder), environment={VARIABLE: fault})
        for name, data in token_files(folder).items():
            assert data == undisturbed[name]
    assert_resumes(shards, folder, undisturbed, "--batch-size", "7")


def test_two_runs_at_once_do_no_harm(shards: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = job_command("--input", str(shards), "--output", str(folder))
    runs = [subprocess.Popen(command, env=job_environment(), stderr=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert token_files(folder) == undisturbed
    assert leftovers(folder) == []


def test_a_shard_that_fails_is_set_aside_and_retried_on_demand(
    shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    flags = ["--input", str(shards), "--output", str(folder), "--max-attempts", "2"]
    failing = run_job(*flags, environment={VARIABLE: "fail:reading:00003"})
    assert failing.returncode == 1
    assert "00003 failed: RuntimeError: fault injected" in failing.stderr
    assert token_files(folder).keys() == {name for name in undisturbed if not name.startswith("00003")}
    assert (folder / "_failed" / "00003.json").exists()
    assert seed_shards(["status", str(folder), "--input", str(shards)]) == 1

    again = run_job(*flags)
    assert again.returncode == 1, "what failed stays failed until it is asked for"
    assert "--retry-failed" in again.stderr

    retried = run_job(*flags, "--retry-failed")
    assert retried.returncode == 0, retried.stderr
    assert token_files(folder) == undisturbed
    assert not (folder / "_failed" / "00003.json").exists()


def test_a_full_disk_ends_the_run_at_once_and_names_it(
    shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = run_job(
        "--input", str(shards), "--output", str(folder), environment={VARIABLE: "full:after_write:00001"}
    )
    assert result.returncode == 1
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert leftovers(folder) == []
    assert_resumes(shards, folder, undisturbed)


def test_a_stalled_shard_ends_a_run_that_cannot_replace_its_worker(shards: Path, tmp_path: Path) -> None:
    result = run_job(
        "--input", str(shards), "--output", str(tmp_path / "out"), "--stall-timeout", "1",
        environment={VARIABLE: "stall:reading:00002"}, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "--stall-timeout" in result.stderr
    assert "Traceback" not in result.stderr
