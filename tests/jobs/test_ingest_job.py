"""jobs/ingest.py from the command line to the token shards, against a real server on loopback."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest, tokenize_pairs
from schemas.token_shard import check_token_shard
from tests.pipeline.picture_server import serving

pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
ROOT = Path(__file__).parents[2]


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
        assert ingest.main([*flags, "--output", str(tmp_path / "closed")]) == 0
        assert "0 of 13 pictures" in capsys.readouterr().out  # loopback is private
        assert not server.requests
        assert ingest.main([*flags, "--output", str(tmp_path / "shards"), *allowed]) == 0
    printed = capsys.readouterr().out
    assert "12 of 13 pictures in 1 shards" in printed
    assert "1 without: HTTP Error 404" in printed
    job = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0"]
    assert (
        tokenize_pairs.main(["--input", str(tmp_path / "shards"), "--output", str(tmp_path / "tokens"), *job])
        == 0
    )
    assert check_token_shard(tmp_path / "tokens/00000.parquet").counts.documents_written == 12


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one list"):
        ingest.main(["--input", "a.parquet", "b.parquet", "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="no such file"):
        ingest.main(["--input", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")])
