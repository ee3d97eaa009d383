"""OBELICS documents: URLs downloaded from a real server once, joined back in order; and Parquet as input."""

import io
import json
import os
import tarfile
import uuid
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.guarded_http import HttpLimits
from pipeline.ingest_config import IngestConfig
from pipeline.ingest_documents import ingest_documents, write_unique_urls
from pipeline.inputs import SourceShard, expand_inputs
from pipeline.shard_task import ShardTask
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.obelics_parquet import ObelicsParquetSource, read_rows
from pipeline.sources.records import RawDocument, RawImage
from pipeline.sources.tar_reader import read_samples
from pipeline.url_images import UrlImages, build_index
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tests.pipeline.picture_server import PictureServer, serving

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples/documents"
PUBLISHED = pq.read_table(SAMPLES / "obelics.parquet")


def _originals() -> dict[str, list[bytes]]:
    """Pictures of each sample document in reading order, by the document's own URL."""
    found = {}
    for shard in sorted(SAMPLES.glob("*.tar")):
        for sample in read_samples(io.BytesIO(shard.read_bytes()), shard.name):
            value = json.loads(sample.members["json"])
            found[value["general_metadata"]["url"]] = [
                sample.members[name] for name in value["images"] if name
            ]
    return found


ORIGINALS = _originals()


def _served_documents(server: PictureServer, path: Path) -> list[dict]:
    """The published rows with addresses of the server, which gets the pictures; one is gone."""
    rows = PUBLISHED.to_pylist()
    for row_number, row in enumerate(rows):
        pictures = iter(ORIGINALS[json.loads(row["general_metadata"])["url"]])
        for position, url in enumerate(row["images"]):
            if url:
                name = f"/{row_number}-{position}"
                server.pictures[name] = next(pictures)
                row["images"][position] = server.url + name
    rows[0]["images"] = [None, f"{server.url}/gone.jpg", None]
    rows.append({  # shows pictures of another document again
        "images": [rows[1]["images"][1], None, rows[1]["images"][1]], "texts": [None, "the same twice", None],
        "metadata": "[null, null, null]", "general_metadata": "{}",
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, PUBLISHED.schema), path)
    return rows


def _config(tmp_path: Path) -> IngestConfig:
    limits = HttpLimits(allowed_networks=("127.0.0.1/32",))
    return IngestConfig(
        url_list=tmp_path, output=tmp_path / "out", num_processes=0, images_per_shard=8, http=limits
    )


def _shards(*patterns: Path) -> list[SourceShard]:
    return expand_inputs([str(pattern) for pattern in patterns])


def _texts(documents: Path) -> list[str]:
    found = []
    for shard in sorted(documents.rglob("*.tar")):
        for sample in read_samples(io.BytesIO(shard.read_bytes()), shard.name):
            found.append(json.loads(sample.members["json"])["texts"][0])
    return found


def _write_texts(path: Path, texts: list[str]) -> Path:
    """Documents of one text and one picture that nobody has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"texts": [text, None], "images": [None, f"file:///{text}"]} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _expected(rows: list[dict], server_pictures: dict[str, bytes]) -> list[list[str | bytes]]:
    """Texts and pictures in reading order, without what does not exist."""
    documents = []
    for row in rows:
        nodes = [
            text if text is not None else server_pictures.get("/" + url.rsplit("/", 1)[1])
            for text, url in zip(row["texts"], row["images"], strict=True)
        ]
        documents.append(
            [node for node in nodes if node is not None and (isinstance(node, bytes) or node.strip())]
        )
    return documents


def _contents(documents: list[RawDocument]) -> list[list[str | bytes]]:
    return [
        [segment.data if isinstance(segment, RawImage) else segment.text for segment in document.segments]
        for document in documents
    ]


def test_ingested_documents_and_published_parquet_give_the_same(tmp_path: Path) -> None:
    pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
    parquet = tmp_path / "obelics.parquet"
    with serving({}) as server:
        rows = _served_documents(server, parquet)
        report = ingest_documents(_shards(parquet), _config(tmp_path), documents_per_shard=5)
        assert set(server.requests.values()) <= {1, 2}  # 2: the one that fails is tried again
        assert server.requests["/1-1"] == 1
        server.requests.clear()
        again = ingest_documents(_shards(parquet), _config(tmp_path), documents_per_shard=5)
        assert not server.requests
        expected = _expected(rows, server.pictures)
    assert again == report
    assert report.num_documents == len(rows)
    assert (report.missing.total(), report.images.failures.total()) == (1, 1)

    # document 0 shows one picture, which is gone: it is refused; all others come in order
    items = []
    for shard in sorted((tmp_path / "out/documents").glob("*.tar")):
        items += list(read_interleaved(read_samples(io.BytesIO(shard.read_bytes()), "x"), "x"))
    refused = [item for item in items if isinstance(item, QuarantineRecord)]
    assert [(record.key, record.unit, record.reason) for record in refused] == [
        ("000000000", Unit.SAMPLE, Reason.DOC_IMAGE_MISSING)
    ]
    assert "404" in refused[0].detail
    documents = [item for item in items if isinstance(item, RawDocument)]
    assert _contents(documents) == expected[1:]
    assert json.loads(documents[0].metadata)["license"]

    source = ObelicsParquetSource(images=tmp_path / "out/images")
    direct = list(source(ShardTask("obelics", str(parquet))))
    assert _contents([item for item in direct if isinstance(item, RawDocument)]) == expected[1:]
    assert [item.reason for item in direct if isinstance(item, QuarantineRecord)] == [
        Reason.DOC_IMAGE_MISSING
    ]


def test_files_of_the_same_name_in_two_folders_are_both_written(tmp_path: Path) -> None:
    pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
    for folder in "ab":
        _write_texts(tmp_path / f"in/{folder}/train-0.parquet", [f"{folder}{number}" for number in range(4)])
    report = ingest_documents(_shards(tmp_path / "in/{a,b}/train-0.parquet"), _config(tmp_path))
    assert report.num_documents == 8
    expected = [f"{folder}{number}" for folder in "ab" for number in range(4)]
    assert _texts(tmp_path / "out/documents") == expected
    assert (tmp_path / "out/documents/a/train-0-00000.tar").is_file()


def test_an_output_takes_one_input_split_one_way(tmp_path: Path) -> None:
    pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
    path = _write_texts(tmp_path / "a.parquet", [str(number) for number in range(8)])
    ingest_documents(_shards(path), _config(tmp_path), documents_per_shard=4)
    (tmp_path / "out/documents/a-00001.tar").unlink()  # as if it had been killed here
    with pytest.raises(ValueError, match=r"documents_per_shard: 4 there, 2 now.*choose another folder"):
        ingest_documents(_shards(path), _config(tmp_path), documents_per_shard=2)
    other = _write_texts(tmp_path / "other.parquet", ["x"])
    with pytest.raises(ValueError, match=r'files: \["a\.parquet", \d+\] there, \["other\.parquet'):
        ingest_documents(_shards(other), _config(tmp_path), documents_per_shard=4)
    ingest_documents(_shards(path), _config(tmp_path), documents_per_shard=4)
    assert _texts(tmp_path / "out/documents") == [str(number) for number in range(8)]


def test_a_folder_without_a_manifest_is_not_taken_over(tmp_path: Path) -> None:
    path = _write_texts(tmp_path / "a.parquet", ["x"])
    (tmp_path / "out").mkdir()
    pq.write_table(pa.table({"url": ["http://another/"]}), tmp_path / "out/urls.parquet")
    with pytest.raises(ValueError, match=r"urls\.parquet but no _documents\.json"):
        ingest_documents(_shards(path), _config(tmp_path))


def _write_not_utf8(path: Path) -> None:
    """Three documents: sound; with a text, and with a URL, that are not UTF-8."""

    def column(*lists: list[bytes | None]) -> pa.Array:
        return pa.array(lists, pa.list_(pa.binary())).view(pa.list_(pa.string()))

    texts = column([b"sound", None], [b"bad \xff\xfe", None], [b"third", None])
    images = column([None, b"http://a/"], [None, b"http://a/"], [None, b"http://\xff/"])
    pq.write_table(pa.table({"texts": texts, "images": images}), path)


def _picture_folder(folder: Path) -> Path:
    (folder / "00000").mkdir(parents=True)
    (folder / "00000/0.jpg").write_bytes(b"picture")
    rows = [{"url": "http://a/", "key": "0", "status": "success", "error_message": None}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    build_index(folder)
    return folder


def test_a_cell_that_is_not_utf8_costs_its_document_alone(tmp_path: Path) -> None:
    _write_not_utf8(tmp_path / "d.parquet")
    images = _picture_folder(tmp_path / "images")
    source = ObelicsParquetSource(images=images)
    document, *refused = source(ShardTask("d", str(tmp_path / "d.parquet")))
    assert _contents([document]) == [["sound", b"picture"]]
    assert [(record.key, record.reason) for record in refused] == [
        ("000000001", Reason.CAPTION_BAD_ENCODING),
        ("000000002", Reason.DOC_IMAGE_MISSING),
    ]
    json.dumps(refused[1].detail, ensure_ascii=False).encode()
    source = ObelicsParquetSource(images=images, config=InterleavedConfig(on_bad_encoding="replace"))
    _, repaired, _ = source(ShardTask("d", str(tmp_path / "d.parquet")))
    assert _contents([repaired]) == [["bad \ufffd\ufffd", b"picture"]]


def test_what_is_not_utf8_goes_through_the_join(tmp_path: Path) -> None:
    _write_not_utf8(tmp_path / "d.parquet")
    write_unique_urls([tmp_path / "d.parquet"], tmp_path / "urls.parquet")
    assert pq.read_table(tmp_path / "urls.parquet")["url"].to_pylist() == ["http://a/"]
    pytest.importorskip("img2dataset", reason="the extra 'ingest' is not installed")
    report = ingest_documents(_shards(tmp_path / "d.parquet"), _config(tmp_path))
    assert report.num_documents == 3
    assert report.missing["is no URL: not UTF-8"] == 1
    assert _texts(tmp_path / "out/documents") == ["sound", "bad \udcff\udcfe", "third"]


def test_published_files_are_read_behind_urls(tmp_path: Path) -> None:
    """Through fsspec, as all other sources: ``memory://`` is a file system that only fsspec has."""
    url = f"memory://{uuid.uuid4().hex}/d.parquet"
    with fsspec.open(url, "wb") as stream:
        stream.write((SAMPLES / "obelics.parquet").read_bytes())
    assert list(read_rows(url)) == list(read_rows(SAMPLES / "obelics.parquet"))
    (shard,) = expand_inputs([url])
    write_unique_urls([shard.url], tmp_path / "urls.parquet")
    assert pq.read_metadata(tmp_path / "urls.parquet").num_rows > 0


def test_urls_are_unique_and_in_order_of_first_use(tmp_path: Path) -> None:
    rows = [
        {"images": ["b", None, "a", "b"], "texts": [None, "x", None, None]},
        {"images": ["a", "c"], "texts": [None] * 2},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    write_unique_urls([tmp_path / "d.parquet"] * 2, tmp_path / "urls.parquet")
    assert pq.read_table(tmp_path / "urls.parquet")["url"].to_pylist() == ["b", "a", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.parquet", "urls.parquet"]


def test_index_of_a_folder_in_the_files_layout(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000/000000000.jpg").write_bytes(b"picture")
    (tmp_path / "00000/000000000.json").write_text("{}")
    rows = [
        {"url": "http://a/", "key": "000000001", "status": "failed_to_download", "error_message": "gone"},
        {"url": "http://a/", "key": "000000000", "status": "success", "error_message": None},
        {"url": "http://b/", "key": "000000002", "status": "failed_to_download", "error_message": "404"},
        {"url": None, "key": "000000003", "status": "failed_to_download", "error_message": "no URL"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    build_index(tmp_path)
    with UrlImages(tmp_path) as images:
        assert images.find("http://a/") == (b"picture", "jpg")
        assert images.find("http://b/") == "404"
        assert images.find("http://c/") == "was never asked for"
        assert Counter(map(images.why_missing, ["http://a/", "http://b/"])) == {None: 1, "404": 1}


def test_a_shard_that_came_with_its_old_time_is_indexed(tmp_path: Path) -> None:
    for name, url in (("00000", "http://a/"), ("00001", "http://b/")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"picture")
        rows = [{"url": url, "key": "0", "status": "success", "error_message": None}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        for path in (tmp_path / name, tmp_path / f"{name}.parquet"):
            os.utime(path, (1e9, 1e9))  # as cp -p and rsync -a leave it
        index = build_index(tmp_path)
    with UrlImages(tmp_path) as images:
        assert images.find("http://a/") == images.find("http://b/") == (b"picture", "jpg")
    made = index.stat().st_mtime_ns
    assert build_index(tmp_path).stat().st_mtime_ns == made  # nothing changed, nothing is made
    (tmp_path / "00001.parquet").unlink()
    build_index(tmp_path)
    with UrlImages(tmp_path) as images:
        assert images.find("http://b/") == "was never asked for"


def test_what_is_not_of_the_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not made by ingestion"):
        build_index(tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: no column images, texts"):
        list(read_rows(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"y\.parquet"):
        list(read_rows(tmp_path / "y.parquet"))


def test_a_shard_that_was_cut_is_an_error_not_a_wrong_picture(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.size = 2000
        tar.addfile(member, io.BytesIO(b"x" * 2000))
    pq.write_table(
        pa.Table.from_pylist([{"url": "u", "key": "0", "status": "success", "error_message": None}]),
        tmp_path / "00000.parquet",
    )
    build_index(tmp_path)
    with (tmp_path / "00000.tar").open("r+b") as file:
        file.truncate(1000)
    with UrlImages(tmp_path) as images, pytest.raises(OSError, match="shorter"):
        images.find("u")
