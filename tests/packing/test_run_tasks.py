"""Worker processes never outlive their driver."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packing.corpus import ROOT


def is_running(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_driver_that_is_killed(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.packing.sleeping_tasks", str(tmp_path)]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    workers = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert all(map(is_running, workers))
    driver.send_signal(number)
    driver.wait()
    assert wait_until(lambda: not any(map(is_running, workers)), 20)
