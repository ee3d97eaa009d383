"""Listing and reading on an S3-compatible server on loopback."""

from collections.abc import Iterator

import pytest

from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.sources.tar_reader import TarSample
from tests.pipeline.sources.tar_writing import pair_members, tar_bytes

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with three shards in two folders."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir("bucket")
    for name in ("laion/part0/00000.tar", "laion/part0/00001.tar", "laion/part1/00000.tar"):
        filesystem.pipe_file(f"bucket/{name}", tar_bytes(pair_members(30, 9_000)))
    yield "s3://bucket/laion"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_listing_and_reading(bucket: str) -> None:
    names = ["part0/00000", "part0/00001", "part1/00000"]
    for pattern in (bucket, f"{bucket}/*/*.tar", f"{bucket}/part{{0,1}}", f"{bucket}/./part{{0,1}}/*.tar"):
        assert [shard.name for shard in expand_inputs([pattern])] == names
    shards = expand_inputs([f"{bucket}/part0/{{00000..00001}}.tar"])
    assert [shard.name for shard in shards] == ["00000", "00001"]
    assert all(shard.num_bytes == len(tar_bytes(pair_members(30, 9_000))) for shard in shards)
    samples = list(read_shard(shards[1]))
    assert len(samples) == 30
    assert all(isinstance(sample, TarSample) for sample in samples)
    with pytest.raises(ValueError, match=r"00007\.tar: no such file"):
        expand_inputs([f"{bucket}/part0/00007.tar"])
