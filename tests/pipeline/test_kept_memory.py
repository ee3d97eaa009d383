"""Decode processes keep the memory of ordinary pictures and give that of giant ones back."""

import platform
import resource
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from tokenizer.preprocess import PreprocessConfig

MIB = 2**20


def use_memory(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Take and free blocks of as many MiB as the task says; of a second time the page faults, and the memory
    that stays in use, in MiB, as the times of two frames."""

    def take_and_free() -> None:
        blocks = [np.ones(int(size) * MIB, np.uint8) for size in task.data.split()]
        blocks.clear()

    before = resident_mib()
    take_and_free()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    take_and_free()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return DecodedFrames(np.zeros((2, 224, 224, 3), np.uint8), (float(faults), resident_mib() - before))


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def faults_and_kept_mib(sizes: bytes) -> tuple[float, ...]:
    config = DecodePoolConfig(num_workers=1, frames_per_task=2, decoder=f"{__name__}:use_memory")
    with DecodePool(config) as pool:
        return pool.submit(DecodeTask(sizes, num_frames=2)).result(120.0).times_s


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_of_pictures_is_kept_but_not_that_of_giants(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = MIB // resource.getpagesize()
    faults, _ = faults_and_kept_mib(b"2 3 4")
    assert faults < pages
    _, kept = faults_and_kept_mib(b"30 30 30")  # small enough each, too much together
    assert kept < 70
    _, kept = faults_and_kept_mib(b"100")
    assert kept < 10
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(MIB // 2))  # what a user sets stays
    faults, _ = faults_and_kept_mib(b"2 3 4")
    assert faults > 4 * pages
