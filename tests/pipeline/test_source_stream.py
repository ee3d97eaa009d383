"""Source streams: every byte in order, retried where it can help, never a hang."""

import io
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry

from pipeline.source_stream import SourceReadError, SourceStreamConfig, buffered_source, open_source

DATA = bytes(range(256)) * 400
QUICK = SourceStreamConfig(block_bytes=1000, stall_timeout_s=0.3, max_retries=2, retry_delay_s=0.01)


class FaultyHandle(io.BytesIO):
    """Reads DATA from an offset until one read fails, ends early or stalls."""

    def __init__(self, offset: int, fault: str, at_read: int, release: threading.Event) -> None:
        super().__init__(DATA)
        self.seek(offset)
        self.fault, self.at_read, self.release = fault, at_read, release
        self.num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.num_reads += 1
        if self.num_reads == self.at_read:
            if self.fault == "error":
                raise OSError("connection reset")
            if self.fault == "short":
                return b""
            if self.fault == "stall":
                self.release.wait(20)
        return super().read(size)


class FaultySource:
    """An opener: the n-th opening has the n-th fault, later ones have none."""

    def __init__(self, faults: list[str], at_read: int = 4) -> None:
        self.faults, self.at_read = faults, at_read
        self.offsets: list[int] = []
        self.release = threading.Event()

    def __call__(self, offset: int) -> tuple[FaultyHandle, int]:
        self.offsets.append(offset)
        fault = self.faults[len(self.offsets) - 1] if len(self.offsets) <= len(self.faults) else "none"
        if fault == "open":
            raise ConnectionError("no route")
        return FaultyHandle(offset, fault, self.at_read, self.release), len(DATA)


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_every_byte_in_order(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(DATA)
    fsspec.filesystem("memory").pipe_file("/source_stream/x.tar", DATA)
    url = {"path": str(path), "file": f"file://{path}", "memory": "memory://source_stream/x.tar"}[scheme]
    with open_source(url, SourceStreamConfig(block_bytes=777)) as stream:
        assert stream.read(10) + stream.read() == DATA


@pytest.mark.parametrize("fault", ["error", "short", "stall"])
def test_a_fault_is_retried_at_the_right_byte(fault: str) -> None:
    source = FaultySource([fault, fault])
    with buffered_source(source, "x", QUICK) as stream:
        assert stream.read() == DATA
    source.release.set()
    assert source.offsets == [0, 3000, 6000]


def test_opening_is_retried() -> None:
    source = FaultySource(["open", "open"])
    with buffered_source(source, "x", QUICK) as stream:
        assert stream.read() == DATA
    assert source.offsets == [0, 0, 0]


def test_retries_begin_anew_when_bytes_came() -> None:
    source = FaultySource(["error"] * 20)
    with buffered_source(source, "x", QUICK) as stream:
        assert stream.read() == DATA
    assert len(source.offsets) == 21


@pytest.mark.parametrize(
    ("fault", "message"),
    [("open", "no route"), ("error", "reset"), ("short", "ended after"), ("stall", "stall_timeout_s")],
)
def test_retries_are_bounded(fault: str, message: str) -> None:
    source = FaultySource([fault] * 10, at_read=1)
    start = time.monotonic()
    with buffered_source(source, "s3://b/x.tar", QUICK) as stream, pytest.raises(SourceReadError) as error:
        stream.read()
    source.release.set()
    assert "s3://b/x.tar: failed at byte 0 (retried 2 times)" in str(error.value)
    assert message in str(error.value)
    assert source.offsets == [0, 0, 0]
    assert time.monotonic() - start < 5


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    sizes = iter([len(DATA), len(DATA) + 1])
    source = FaultySource(["error"])

    def open_at(offset: int) -> tuple[FaultyHandle, int]:
        return source(offset)[0], next(sizes)

    with (
        buffered_source(open_at, "x", QUICK) as stream,
        pytest.raises(ValueError, match="changed while it was read"),
    ):
        stream.read()


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("num_read", [10, 90_000, 97_000])
@pytest.mark.parametrize("change", [-5000, 1, 50_000])
def test_a_file_that_grows_or_shrinks_is_refused(
    tmp_path: Path, scheme: str, num_read: int, change: int
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(DATA)
    config = SourceStreamConfig(block_bytes=1000, num_blocks_ahead=1, max_retries=1, retry_delay_s=0)
    with open_source(f"{scheme}{path}", config) as stream:
        reader = stream.raw  # unbuffered: it does not run to the end by itself
        while num_read > 0:
            num_read -= len(reader.read(min(num_read, 500)))
        with path.open("r+b") as file:
            file.truncate(len(DATA) + change)
        with pytest.raises(ValueError, match=rf"x\.tar: the source changed while it was read: {len(DATA)} "):
            while reader.read(500):
                pass


def test_missing_file_and_directory_are_told_at_once(tmp_path: Path) -> None:
    with (
        open_source(str(tmp_path / "none.tar")) as stream,
        pytest.raises(FileNotFoundError, match=r"none\.tar"),
    ):
        stream.read(1)
    with open_source(str(tmp_path)) as stream, pytest.raises(IsADirectoryError, match=tmp_path.name):
        stream.read(1)


@pytest.mark.parametrize(
    ("protocol", "package", "remedy"),
    [("s3", "s3fs", r"pip install 'seed-shards\[s3\]'"), ("gs", "gcsfs", "pip install gcsfs")],
)
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, protocol: str, package: str, remedy: str
) -> None:
    monkeypatch.delitem(_registry, protocol, raising=False)  # another test may have used it
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a package that is not installed
    with pytest.raises(ValueError, match=remedy):
        open_source(f"{protocol}://bucket/x.tar")


def test_reading_ahead_is_bounded() -> None:
    source = FaultySource([])
    handles: list[FaultyHandle] = []

    def open_at(offset: int) -> tuple[FaultyHandle, int]:
        handle, size = source(offset)
        handles.append(handle)
        return handle, size

    config = SourceStreamConfig(block_bytes=1000, num_blocks_ahead=3)
    with buffered_source(open_at, "x", config) as stream:
        stream.read(1)
        time.sleep(0.2)
        num_reads = handles[0].num_reads
    assert num_reads == 1 + 3


def test_closing_early_ends_the_thread(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(DATA)
    before = set(threading.enumerate())
    for _ in range(20):
        with open_source(str(path), SourceStreamConfig(block_bytes=100)) as stream:
            stream.read(1)
    deadline = time.monotonic() + 5
    while (left := reading_threads() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def reading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "source-reader"}


@pytest.mark.parametrize(
    "setting", [{"block_bytes": 0}, {"num_blocks_ahead": 0}, {"stall_timeout_s": 0}, {"max_retries": -1}]
)
def test_settings_are_checked(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SourceStreamConfig(**setting)
