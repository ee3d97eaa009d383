"""Ingestion against a real HTTP server on loopback: pictures, errors, redirects, opt-outs, slow answers."""

import csv
import gzip
import io
import json
import os
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.guarded_http import HttpLimits
from pipeline.ingest import ingest
from pipeline.ingest_config import IngestConfig
from pipeline.ingest_documents import ingest_documents
from pipeline.original_images import suffix_of
from pipeline.output_claim import claim_output
from pipeline.sources.pairs import read_pairs
from pipeline.sources.records import RawDocument
from pipeline.sources.tar_reader import read_samples
from pipeline.url_images import build_index
from pipeline.url_lists import list_files
from tests.pipeline.picture_server import PictureServer, serving

pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
ROOT = Path(__file__).parents[2]
LIMITS = HttpLimits(allowed_networks=("127.0.0.1/32",), max_seconds=3.0, max_bytes=2_000_000)


def _pictures() -> dict[str, bytes]:
    with tarfile.open(ROOT / "samples/documents/00001.tar") as tar:
        members = [member for member in tar.getmembers() if not member.name.endswith(".json")]
        return {f"/{member.name}": tar.extractfile(member).read() for member in members}


PICTURES = _pictures()
NAMES = sorted(PICTURES)


def _config(url_list: Path, output: Path, **settings: object) -> IngestConfig:
    defaults = {"caption_column": "caption", "num_processes": 0, "num_threads": 8, "timeout": 3.0}
    return IngestConfig(
        url_list=url_list, output=output, http=LIMITS, **defaults | {"num_retries": 0} | settings
    )


def _samples(output: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(output.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


def _write_parquet(path: Path, rows: list[tuple[str | None, str]]) -> Path:
    pq.write_table(pa.table({"url": [row[0] for row in rows], "caption": [row[1] for row in rows]}), path)
    return path


def _hard_rows(server: PictureServer, inside: PictureServer) -> list[tuple[str | None, str]]:
    name = NAMES[0]
    return [
        (f"{server.url}{name}", "a picture"),
        (f"{server.url}{name}?text", "a picture that is sent as text/html"),
        (f"{server.url}/redirect?to={server.url}{NAMES[1]}", "a picture behind a redirect"),
        (f"{server.url}/redirect?to={inside.url}{name}", "a redirect to a private address"),
        (f"{inside.url}{name}", "a private address"),
        (f"{server.url}/missing.jpg", "not found"),
        (f"{server.url}/error", "an error of the server"),
        (f"{server.url}/html", "a page under image/jpeg"),
        (f"{server.url}/huge", "an answer without end"),
        (f"{server.url}/drip", "an answer that drips"),
        (f"{server.url}/robots/noai{name}", "opted out"),
        (f"{server.url}/robots/seed-shards+noindex{name}", "opted out, addressed to us"),
        (f"{server.url}/robots/otherbot+noai{name}", "somebody else is addressed"),
        (f"{server.url}/robots/nosnippet{name}", "a directive that does not concern us"),
        ("file:///etc/passwd", "a file"),
        ("no url at all", "nonsense"),
        (None, "a row without one"),
        (f"{server.url}{NAMES[2]}", "the last one, with ünïcode and <script>"),
    ]


COMING = {0, 1, 2, 12, 13, 17}


def test_what_comes_and_what_does_not(tmp_path: Path) -> None:
    with serving(PICTURES) as server, serving(PICTURES, "127.0.0.2") as inside:
        rows = _hard_rows(server, inside)
        report = ingest(_config(_write_parquet(tmp_path / "list.parquet", rows), tmp_path / "out"))
        assert not inside.requests
        assert all("seed-shards" in agent for agent in server.user_agents)
    assert report.imbalance() is None
    assert report.failures["no URL"] == 1
    build_index(tmp_path / "out")  # which has nothing to find for that row
    assert (report.num_rows, report.num_images, report.num_shards) == (len(rows), len(COMING), 1)
    table = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [row["url"] for row in table] == [url for url, _ in rows]
    assert {number for number, row in enumerate(table) if row["status"] == "success"} == COMING
    errors = {number: row["error_message"] for number, row in enumerate(table)}
    for number, words in {
        3: "not public", 4: "not public", 5: "404", 6: "500", 7: "image_not_an_image", 8: "exceeds",
        9: "within 3 s", 10: "X-Robots-Tag", 11: "X-Robots-Tag", 14: "unknown url type",
        15: "unknown url type", 16: "no URL",
    }.items():  # fmt: skip
        assert words in errors[number], errors[number]
    samples = _samples(tmp_path / "out")
    assert list(samples) == [f"{number:09d}" for number in sorted(COMING)]  # in the order of the list
    original = PICTURES[NAMES[0]]
    assert samples["000000000"][suffix_of(original)] == original  # byte for byte
    assert samples["000000017"]["txt"].decode() == rows[17][1]


def test_shards_are_read_as_pairs(tmp_path: Path) -> None:
    with serving(PICTURES) as server:
        rows = [(f"{server.url}{name}", f"picture {name}") for name in NAMES]
        ingest(_config(_write_parquet(tmp_path / "list.parquet", rows), tmp_path / "out", images_per_shard=5))
    documents = []
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with shard.open("rb") as stream:
            documents += list(read_pairs(read_samples(stream, shard.name), shard.name))
    assert all(isinstance(document, RawDocument) for document in documents)
    assert [document.segments[0].data for document in documents] == [PICTURES[name] for name in NAMES]
    assert [document.segments[1].text for document in documents] == [f"picture {name}" for name in NAMES]
    assert json.loads(documents[0].metadata)["url"] == rows[0][0]


def test_a_second_run_downloads_only_what_is_missing(tmp_path: Path) -> None:
    with serving(PICTURES) as server:
        rows = [(f"{server.url}{name}", name) for name in NAMES]
        config = _config(
            _write_parquet(tmp_path / "list.parquet", rows), tmp_path / "out", images_per_shard=4
        )
        first = ingest(config)
        before = _samples(tmp_path / "out")
        (tmp_path / "out/00001.tar").unlink()
        (tmp_path / "out/.tmp-ingest-1").mkdir()  # left by a killed run, two days ago
        os.utime(tmp_path / "out/.tmp-ingest-1", (time.time() - 2 * 86_400,) * 2)
        server.requests.clear()
        assert ingest(config) == first
        assert _samples(tmp_path / "out") == before
        assert set(server.requests) == set(NAMES[4:8])
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_what_a_live_run_writes_is_left_alone(tmp_path: Path) -> None:
    live = tmp_path / "out/.tmp-ingest-live/00000/00000.tar"
    live.parent.mkdir(parents=True)
    live.write_bytes(b"half")
    ingest(_config(_write_parquet(tmp_path / "list.parquet", [("file:///x", "")]), tmp_path / "out"))
    assert live.read_bytes() == b"half"


def test_of_two_runs_that_claim_a_folder_at_once_one_wins(tmp_path: Path) -> None:
    """Each says what it wants; all agree on what is there, and only those that want it go on."""
    manifests = [{"images_per_shard": number} for number in range(8)]

    def outcome(manifest: dict[str, int]) -> bool:
        try:
            claim_output(tmp_path / "_ingest.json", manifest)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(outcome, manifests))
    assert won.count(True) == 1
    assert json.loads((tmp_path / "_ingest.json").read_text()) == manifests[won.index(True)]


def test_another_list_needs_another_folder(tmp_path: Path) -> None:
    with serving(PICTURES) as server:
        rows = [(f"{server.url}{name}", name) for name in NAMES[:2]]
        ingest(_config(_write_parquet(tmp_path / "list.parquet", rows), tmp_path / "out"))
        with pytest.raises(ValueError, match="made from another list"):
            ingest(_config(_write_parquet(tmp_path / "other.parquet", rows * 9), tmp_path / "out"))


def _write_list(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows))
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("url", "caption"), *rows])
    path.write_text(buffer.getvalue())


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_other_kinds_of_list(tmp_path: Path, name: str) -> None:
    with serving(PICTURES) as server:
        rows = [(f"{server.url}{path}", f'picture, "{path}"') for path in NAMES[:3]]
        _write_list(tmp_path / name, rows)
        assert ingest(_config(tmp_path / name, tmp_path / "out")).num_images == 3
    assert [sample["txt"].decode() for sample in _samples(tmp_path / "out").values()] == [
        text for _, text in rows
    ]


def test_opt_outs_can_be_overruled(tmp_path: Path) -> None:
    with serving(PICTURES) as server:
        rows = [(f"{server.url}/robots/noai{NAMES[0]}", "")]
        url_list = _write_parquet(tmp_path / "list.parquet", rows)
        assert ingest(_config(url_list, tmp_path / "kept")).num_images == 0
        assert ingest(_config(url_list, tmp_path / "over", honour_opt_out=False)).num_images == 1


@pytest.mark.parametrize("name", ["0001.txt", "0001.txt.gz"])
def test_captions_are_no_lists(tmp_path: Path, name: str) -> None:
    """A folder of pictures and captions, given in place of a list."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0001.jpg").write_bytes(PICTURES[NAMES[0]])
    text = b"\n A dog, and a cat\nhttp://x/\n"
    (photos / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(ValueError, match=rf"photos/{name}: .*'A dog, and a cat'.*`tar .* -C \S+photos \.`"):
        ingest(_config(photos, tmp_path / "out", caption_column=None))
    assert not (tmp_path / "out").exists()


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a.txt").write_text('"http://127.0.0.1:9/x"\n')
    (tmp_path / "lists/b.txt").write_text("http://127.0.0.1:9/x\nhttp://127.0.0.1:9/x,y\n")
    with pytest.raises(ValueError, match=r"lists/b\.txt: cannot be read with the columns url: CSV parse"):
        ingest(_config(tmp_path / "lists", tmp_path / "out", caption_column=None))


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        list_files(tmp_path / "none.parquet")
    (tmp_path / "mixed").mkdir()
    for name in ("a.csv", "b.parquet"):
        (tmp_path / "mixed" / name).touch()
    with pytest.raises(ValueError, match="one kind"):
        list_files(tmp_path / "mixed")
    path = _write_parquet(tmp_path / "list.parquet", [("http://x/", "y")])
    with pytest.raises(ValueError, match="no column address, it has url"):
        ingest(_config(path, tmp_path / "out", url_column="address"))
    (tmp_path / "list.csv").write_text("url,text\nhttp://x/,y\n")
    (tmp_path / "list.tsv.gz").write_bytes(gzip.compress(b"url\ttext\nhttp://x/\ty\n"))
    for name in ("list.csv", "list.tsv.gz"):
        with pytest.raises(ValueError, match="no column TEXT, it has url, text"):
            ingest(_config(tmp_path / name, tmp_path / "out", caption_column="TEXT"))
    assert not (tmp_path / "out").exists(), "a wrong column claims no folder"
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"text\.parquet: no parquet table"):
        ingest(_config(tmp_path / "text.parquet", tmp_path / "out"))
    with pytest.raises(ValueError, match="sha256"):
        _config(path, tmp_path / "out", kept_columns=("sha256",))


def test_without_img2dataset_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write_parquet(tmp_path / "list.parquet", [("http://x/", "y")])
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    for start in (ingest, lambda config: ingest_documents([], config)):
        with pytest.raises(ValueError, match=r"pip install 'seed-shards\[ingest\]'"):
            start(_config(path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
