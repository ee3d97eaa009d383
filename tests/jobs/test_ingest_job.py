"""jobs/ingest.py from the command line to the token shards, against a real server on loopback."""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest, tokenize_pairs
from pipeline.prefixed_output import PrefixedOutput
from schemas.token_shard import check_token_shard
from tests.pipeline.picture_server import serving

pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
ROOT = Path(__file__).parents[2]
OBELICS_SCHEMA = pq.read_schema(ROOT / "samples/documents/obelics.parquet")


def _pictures() -> dict[str, bytes]:
    with tarfile.open(ROOT / "samples/documents/00001.tar") as tar:
        names = [name for name in tar.getnames() if not name.endswith(".json")]
        return {f"/{name}": tar.extractfile(name).read() for name in names}


def test_pairs_from_urls_to_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = _pictures()
    with serving(pictures) as server:
        urls = [server.url + name for name in pictures] + [f"{server.url}/gone"]
        table = pa.table({"url": urls, "text": [f"picture {number}" for number in range(len(urls))]})
        pq.write_table(table, tmp_path / "list.parquet")
        flags = [
            "--input",
            str(tmp_path / "list.parquet"),
            "--caption-column",
            "text",
            "--num-processes",
            "0",
        ]
        allowed = ["--http.allowed-networks", "127.0.0.1/32"]
        for _ in range(2):  # a finished folder ends the same
            assert ingest.main([*flags, "--output", str(tmp_path / "closed")]) == 1
            printed = capsys.readouterr()
            assert "0 of 13 pictures" in printed.out  # loopback is private
            assert "13 without: <urlopen error 127.0.0.1 is not public (--http.all" in printed.out
            assert "error: not one picture of 13 came" in printed.err
        assert not server.requests
        assert ingest.main([*flags, "--output", str(tmp_path / "shards"), *allowed]) == 0
    printed = capsys.readouterr().out
    assert "12 of 13 pictures in 1 shard\n" in printed
    assert "1 without: HTTP Error 404" in printed
    job = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0"]
    assert (
        tokenize_pairs.main(["--input", str(tmp_path / "shards"), "--output", str(tmp_path / "tokens"), *job])
        == 0
    )
    assert check_token_shard(tmp_path / "tokens/00000.parquet").counts.documents_written == 12


@pytest.mark.parametrize("num_processes", [0, 1])
def test_stdout_has_the_result_and_stderr_what_img2dataset_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], num_processes: int
) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/gone.jpg\n")
    flags = ["--input", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert ingest.main([*flags, "--num-processes", str(num_processes)]) == 1
    printed = capfd.readouterr()
    assert printed.out.startswith("0 of 1 picture in 1 shard\n  1 without: ")
    assert len(printed.out.splitlines()) == 2
    assert "img2dataset: Sharding file number 1 of 1 called " in printed.err


def test_lines_of_threads_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stdout(PrefixedOutput("theirs: ")), ThreadPool(8) as threads:
        threads.map(lambda number: print("line", number, end=" ends\n"), range(500), chunksize=1)
        print("two\nlines")
    printed = capsys.readouterr()
    assert not printed.out
    expected = [f"theirs: line {number} ends" for number in range(500)]
    assert sorted(printed.err.splitlines()) == sorted([*expected, "theirs: two", "theirs: lines"])


def test_local_pictures_need_no_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("file:///a.jpg\nfile:///b.jpg\n")
    flags = ["--input", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert ingest.main([*flags, "--num-processes", "0"]) == 1
    assert "need no download, pack them with `tar cf 00000.tar" in capsys.readouterr().err


@pytest.mark.parametrize("urls", [["http://127.0.0.1:9/gone.jpg"], [None]])
def test_documents_without_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], urls: list[str | None]
) -> None:
    rows = [{"images": urls, "texts": [None], "metadata": "[null]", "general_metadata": "{}"}]
    pq.write_table(pa.Table.from_pylist(rows, OBELICS_SCHEMA), tmp_path / "list.parquet")
    flags = ["--documents", "--input", str(tmp_path / "list.parquet"), "--output", str(tmp_path / "out")]
    assert ingest.main([*flags, "--num-processes", "0"]) == 1
    assert "error: not one picture" in capsys.readouterr().err


def _workers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Processes of its session that still run, besides itself."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == process.pid and fields[0] != "Z":
                found.add(int(stat.parent.name))
    return found - {process.pid}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    with serving({}) as server:
        urls = [f"{server.url}/silent?{place}" for place in range(8)]
        pq.write_table(pa.table({"url": urls}), tmp_path / "list.parquet")
        flags = ["--input", str(tmp_path / "list.parquet"), "--output", str(tmp_path / "out")]
        flags += ["--num-processes", "2", "--num-threads", "1", "--images-per-shard", "4", "--timeout", "30"]
        flags += ["--http.allowed-networks", "127.0.0.1/32"]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/ingest.py"), *flags], start_new_session=True
        )
        try:
            _wait_until(lambda: server.requests["/silent"] >= 2, 120)
            process.send_signal(number)
            status = process.wait(timeout=30)
            _wait_until(lambda: not _workers_of(process), 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert status == (128 + number if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["_ingest.json"]


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not so after {timeout_s:g} s"
        time.sleep(0.1)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one list"):
        ingest.main(["--input", "a.parquet", "b.parquet", "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="--input is empty"):
        ingest.main(["--output", str(tmp_path / "out"), "--input"])
    with pytest.raises(ValueError, match="no such file"):
        ingest.main(["--input", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")])


def test_a_foreign_tar_in_the_output_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["file:///x"]}), tmp_path / "list.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/extra.tar").touch()
    flags = ["--input", str(tmp_path / "list.parquet"), "--num-processes", "0"]
    with pytest.raises(ValueError, match=r"extra\.tar: not made by ingestion.*move it"):
        ingest.main([*flags, "--output", str(tmp_path / "out")])
