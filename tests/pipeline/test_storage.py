"""Files appear whole or not at all, on a disk and in an object store that speaks S3."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.encode_shard import check_written
from pipeline.fault_points import VARIABLE
from pipeline.inspect_shards import main as seed_shards
from pipeline.shard_task import ledger_name
from pipeline.shard_worker import fatal_message, is_fatal
from pipeline.storage import Folder, OutputDeniedError, open_folder
from schemas.token_shard import check_token_shard
from tests.pipeline.tiny_shards import (
    job_command,
    job_environment,
    open_encoder,
    run_job,
    task_for,
    token_files,
    write_shards,
)

with socket.create_server(("127.0.0.1", 0)) as _free:  # tests of this file may run in two processes
    S3_PORT = _free.getsockname()[1]
ENDPOINT = f"http://127.0.0.1:{S3_PORT}"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": ENDPOINT,
}


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback, in a process of its own."""
    import urllib.request

    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)], stdout=log, stderr=log
    )
    saved = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(ENDPOINT, timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.send_signal(signal.SIGKILL)
        server.wait()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return open_folder(str(tmp_path / "out"))
    server = request.getfixturevalue("s3_server")
    return open_folder(f"{server}/{tmp_path.name}")


def test_what_is_written_is_listed_and_read(folder: Folder) -> None:
    assert folder.names() == {}
    folder.write("a.parquet", b"one")
    folder.write("part0/b.parquet", b"three")
    assert folder.names() == {"a.parquet": 3, "part0/b.parquet": 5}
    assert folder.names("part0") == {"b.parquet": 5}
    assert folder.read("part0/b.parquet") == b"three"
    assert folder.exists("a.parquet")
    folder.write("a.parquet", b"four")
    assert folder.read("a.parquet") == b"four"
    folder.remove("a.parquet")
    folder.remove("a.parquet")
    assert not folder.exists("a.parquet")
    with pytest.raises(FileNotFoundError):
        folder.read("a.parquet")


def test_exactly_one_of_several_creators_wins(folder: Folder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda index: folder.create("_dataset.json", b"%d" % index), range(8)))
    assert sum(won) == 1
    assert folder.read("_dataset.json") == b"%d" % won.index(True)


def test_a_staged_file_is_invisible_until_it_is_committed(folder: Folder) -> None:
    with folder.stage("part/a.parquet") as staged:
        staged.path.write_bytes(b"whole")
        assert folder.names() == {}
        staged.commit()
        assert folder.read("part/a.parquet") == b"whole"
    assert not staged.path.exists()


def test_a_staged_file_that_is_given_up_leaves_nothing(folder: Folder) -> None:
    with pytest.raises(RuntimeError), folder.stage("a.parquet") as staged:
        staged.path.write_bytes(b"half")
        raise RuntimeError
    assert folder.names() == {}
    assert not staged.path.exists()


def test_a_shard_is_committed_and_read_back(folder: Folder, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", 1, 20) / "00000.tar"
    with open_encoder(folder) as encoder:
        report = encoder.encode(task_for(source))
    footer = check_token_shard(**folder.parquet_source("00000.parquet"))
    assert footer.counts == report.counts
    assert footer.quarantine is not None
    assert folder.names().keys() == {"00000.parquet", ledger_name("00000", footer.quarantine.sha256)}


def test_old_temporaries_are_found_and_young_ones_are_left(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for name, age_s in (("old", 1e6), ("young", 10)):
        path = tmp_path / "part" / f".tmp-{name}.parquet-1"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    assert folder.stale_temporaries() == ["part/.tmp-old.parquet-1"]


def test_a_protocol_that_nothing_speaks() -> None:
    with pytest.raises(ValueError, match="output nosuch://bucket"):
        open_folder("nosuch://bucket/x")


class TestJobOnS3:
    """The whole job with input on a disk and output in a bucket; killed between upload and completion."""

    @pytest.mark.parametrize("point", ["after_write", "after_ledger", "after_commit"])
    def test_kill_and_resume(self, s3_server: str, tmp_path: Path, point: str) -> None:
        shards = write_shards(tmp_path / "in", 3, 20)
        local, url = tmp_path / "local", f"{s3_server}/{tmp_path.name}"
        assert run_job("--input", str(shards), "--output", str(local)).returncode == 0
        flags = ["--input", str(shards), "--output", url]
        killed = run_job(*flags, environment={VARIABLE: f"kill:{point}:00001"})
        assert killed.returncode == -signal.SIGKILL
        resumed = run_job(*flags)
        assert resumed.returncode == 0, resumed.stderr
        folder = open_folder(url)
        expected = token_files(local)
        assert {name: folder.read(name) for name in expected} == expected
        assert seed_shards(["validate", url]) == 0
        logs = [name for name in folder.names("_logs") if name.endswith(".jsonl")]
        assert logs, "the run log is in the bucket"

    def test_an_upload_that_is_killed_half_way_shows_nothing(self, s3_server: str, tmp_path: Path) -> None:
        """A multipart upload whose parts are sent, but not completed, is no object."""
        import s3fs

        url = f"{s3_server}/{tmp_path.name}"
        filesystem = s3fs.S3FileSystem()
        file = filesystem.open(f"{url}/00000.parquet", "wb", block_size=5 << 20)
        file.write(b"x" * (6 << 20))
        file.flush()
        assert open_folder(url).names() == {}
        file.discard()
        file.closed = True


def test_the_check_before_commit_reads_the_file(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", 2, 10)
    with open_encoder(tmp_path) as encoder:
        encoder.encode(task_for(source / "00000.tar"))
        encoder.encode(task_for(source / "00001.tar"))
    footer = check_token_shard(tmp_path / "00000.parquet")
    check_written(tmp_path / "00000.parquet", footer)
    with pytest.raises(OSError, match="differs from the one written"):
        check_written(tmp_path / "00001.parquet", footer)


def test_a_full_disk_at_the_first_file_names_the_folder_and_the_remedy(tmp_path: Path) -> None:
    """`ulimit -f 0` would be a signal; a file system of its own needs rights: the error is put in place."""
    shards = write_shards(tmp_path / "in", 1, 3)
    code = (
        "import errno, os, sys, pathlib\n"
        "def full(self, data): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "pathlib.Path.write_bytes = full\n"
        "sys.argv = sys.argv[1:]\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = job_command("--input", str(shards), "--output", str(tmp_path / "out"))
    command[1:1] = ["-c", code]
    result = subprocess.run(command, env=job_environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"error: output {tmp_path / 'out'}: the disk is full" in result.stderr, result.stderr
    assert "free space and run the same command again" in result.stderr


def refuse(code: str, status: int, message: str, times: int = 10**9) -> Callable[..., Any]:
    """`put_object` as a store answers it that refuses, so many times, and works then."""
    import s3fs
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    works = s3fs.S3FileSystem._call_s3
    left = itertools.count(times, -1)

    async def call(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "put_object" and next(left) > 0:
            response = {
                "Error": {"Code": code, "Message": message},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            raise translate_boto_error(ClientError(response, "PutObject"))
        return await works(self, method, *arguments, **options)

    return call


class TestStoreThatRefuses:
    """The client is real; only the answers to PUT are put in its way, which the test server cannot give."""

    def test_a_bucket_that_may_not_be_written_ends_the_run(
        self, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import s3fs

        source = write_shards(tmp_path / "in", 1, 3) / "00000.tar"
        folder = open_folder(f"{s3_server}/{tmp_path.name}")
        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse("AccessDenied", 403, "Access Denied"))
        with open_encoder(folder) as encoder, pytest.raises(OutputDeniedError) as caught:
            encoder.encode(task_for(source))
        assert is_fatal(caught.value)
        assert "Access Denied" in fatal_message(caught.value, folder.url)
        with pytest.raises(OutputDeniedError, match=rf"{tmp_path.name}/_dataset\.json.*Access Denied"):
            folder.create("_dataset.json", b"")

    @pytest.mark.parametrize("is_there", [False, True])
    def test_a_conflict_of_two_creators_is_decided(
        self, is_there: bool, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 may answer 409 to both; the one that asks again finds the file of the other, or makes it."""
        import s3fs

        folder = open_folder(f"{s3_server}/{tmp_path.name}")
        if is_there:
            folder.write("_dataset.json", b"other")
        conflict = refuse("ConditionalRequestConflict", 409, "a conflicting operation occurred", times=2)
        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", conflict)
        assert folder.create("_dataset.json", b"mine") is not is_there
        assert folder.read("_dataset.json") == (b"other" if is_there else b"mine")


def test_temporaries_of_killed_uploaders_are_removed_when_they_are_old(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = open_folder(f"{s3_server}/{tmp_path.name}")
    left, young = (folder.stage("a.parquet").path for _ in range(2))
    foreign = tmp_path / "foreign"
    foreign.touch()
    for path in (left, foreign):
        os.utime(path, (time.time() - 1e6,) * 2)
    open_folder(folder.url).stage("b.parquet")
    assert not left.exists()
    assert young.exists()
    assert foreign.exists()
