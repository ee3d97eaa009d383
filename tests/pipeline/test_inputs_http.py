"""Shards behind http, with and without ranges, through errors and cut connections; other stores."""

import io
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs import tokenize_pairs
from pipeline.inputs import SourceShard, expand_inputs
from pipeline.read_shard import read_shard
from pipeline.source_stream import SourceReadError, SourceStreamConfig, filesystem_of, open_source
from schemas.quarantine import Reason, Unit
from schemas.token_shard import check_token_shard
from tests.pipeline.shard_server import ShardServer, serving_shards

ROOT = Path(__file__).parents[2]
SHARD = (ROOT / "samples/pairs/00000.tar").read_bytes()
QUICK = SourceStreamConfig(block_bytes=100_000, stall_timeout_s=5, max_retries=3, retry_delay_s=0.01)


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request: pytest.FixtureRequest) -> Iterator[ShardServer]:
    with serving_shards({"/00000.tar": SHARD}) as server:
        server.has_ranges = request.param
        yield server


def _read(server: ShardServer) -> bytes:
    with open_source(f"{server.url}/00000.tar", QUICK) as stream:
        return stream.read()


def test_one_request_gives_the_shard(server: ShardServer) -> None:
    assert _read(server) == SHARD
    assert server.requests == {"GET": 1, "range": 0}


@pytest.mark.parametrize("fault", [500, 503, 429, "cut"])
def test_what_may_pass_is_tried_again(server: ShardServer, fault: int | str) -> None:
    server.faults["/00000.tar"] = [fault, fault]
    assert _read(server) == SHARD
    assert server.requests["GET"] == 3
    assert (server.requests["range"] > 0) == (fault == "cut")  # the next request begins behind what came


def test_a_server_that_never_recovers_is_an_error_without_secrets(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults["/00000.tar"] = [503] * 99
    filesystem, _ = filesystem_of(server.url)
    monkeypatch.setitem(filesystem.kwargs, "headers", {"Authorization": "Bearer secret"})
    with pytest.raises(SourceReadError, match="HTTP status 503") as caught:
        _read(server)
    assert server.url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert server.requests["GET"] == 1 + QUICK.max_retries


def test_a_missing_shard_is_not_tried_again(server: ShardServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        open_source(f"{server.url}/gone.tar").read()
    assert server.requests["GET"] == 1


def test_without_a_length_a_cut_shows_in_the_tar(server: ShardServer) -> None:
    """Nobody but the tar itself can tell that bytes are missing."""
    server.has_length = False
    server.faults["/00000.tar"] = ["cut"]
    items = list(read_shard(SourceShard(f"{server.url}/00000.tar", "00000"), stream=QUICK))
    assert items[-1].unit is Unit.SHARD
    assert items[-1].reason is Reason.TAR_TRUNCATED


def test_a_range_that_was_not_asked_for_is_refused(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not server.has_ranges:
        pytest.skip("no ranges")
    server.faults["/00000.tar"] = ["cut"]
    server.range_shift = 1
    with pytest.raises(SourceReadError, match="asked for bytes from"):
        _read(server)


def test_the_job_reads_from_a_server_that_stumbles(server: ShardServer, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(SHARD)) as tar:
        num_samples = len({name.partition(".")[0] for name in tar.getnames()})
    server.faults["/00000.tar"] = ["cut", 500]
    flags = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0"]
    url = f"{server.url}/{{00000..00000}}.tar"
    assert tokenize_pairs.main(["--input", url, "--output", str(tmp_path / "out"), *flags]) == 0
    footer = check_token_shard(tmp_path / "out/00000.parquet")
    assert footer.source == f"{server.url}/00000.tar"
    assert (footer.counts.samples_read, footer.source_complete) == (num_samples, True)
    flags += ["--max-attempts", "1"]
    url = f"{server.url}/gone.tar"
    assert tokenize_pairs.main(["--input", url, "--output", str(tmp_path / "out"), *flags]) == 1


@pytest.mark.parametrize(
    ("url", "package", "remedy"),
    [
        ("gs://bucket/x.tar", "gcsfs", "pip install gcsfs"),
        ("az://bucket/x.tar", "adlfs", "install the fsspec package for az://"),
        ("hf://datasets/someone/something/x.tar", "huggingface_hub", "pip install huggingface_hub"),
    ],
)
def test_a_store_resolves_or_says_what_to_install(url: str, package: str, remedy: str) -> None:
    """No bucket can be reached from a test: only that the class is found, or what is said without it."""
    if find_spec(package):
        assert filesystem_of(url)[0].protocol
        return
    with pytest.raises(ValueError, match=remedy):
        expand_inputs([url])
