"""The HTML report: nothing of the data becomes markup, nothing is loaded, and the figures are right."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import tokenize_chats, tokenize_obelics, tokenize_pairs, tokenize_videos
from pipeline.inspect_shards import main as seed_shards
from pipeline.report import CodesByPlace, make_report
from pipeline.storage import open_folder
from pipeline.token_dataset import TokenDataset
from tests.html_reader import ATTACKS, HtmlPage, chromium_command

ROOT = Path(__file__).parents[2]
FAST = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0", "--batch-size", "8"]


def _report(folder: Path, tmp_path: Path, *flags: str) -> HtmlPage:
    path = tmp_path / "report.html"
    assert seed_shards(["report", str(folder), "--output", str(path), *flags]) == 0
    return HtmlPage(path.read_text(encoding="utf-8"))


def _hostile_pairs(path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        for number, attack in enumerate(ATTACKS):
            values = {
                "png": picture.getvalue(),
                "txt": attack.encode(),
                "json": json.dumps({"url": attack}).encode(),
            }
            for suffix, data in values.items():
                member = tarfile.TarInfo(f"<b>{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo("<i>broken.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"alone"))


def test_nothing_of_the_data_becomes_markup(tmp_path: Path) -> None:
    _hostile_pairs(tmp_path / "<u>.tar")
    out = tmp_path / "out"
    assert tokenize_pairs.main(["--input", str(tmp_path / "<u>.tar"), "--output", str(out), *FAST]) == 0
    page = _report(out, tmp_path)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"b0", "i", "u"}
    page.check_needs_nothing_else()
    for attack in ATTACKS:
        assert attack in page.text
    assert "<i>broken" in page.text
    assert len(page.pictures) == len(ATTACKS)


@pytest.mark.parametrize(
    ("job", "source", "num_pictures"),
    [
        (tokenize_videos, "videos/00000.tar", 28),
        (tokenize_obelics, "documents/*.tar", 21),
        (tokenize_chats, "chats", 12),
        (tokenize_pairs, "pairs/00000.tar", 24),
    ],
    ids=["videos", "documents", "chats", "pairs"],
)
def test_pictures_and_codes_of_every_kind(tmp_path: Path, job, source: str, num_pictures: int) -> None:
    out = tmp_path / "out"
    assert job.main(["--input", str(ROOT / "samples" / source), "--output", str(out), *FAST]) == 0
    page = _report(out, tmp_path, "--limit", "24")
    assert ("of the source bytes" in page.text) == (source != "chats")  # of which one file is JSON
    assert len(page.pictures) == num_pictures
    for picture in page.pictures:
        assert max(Image.open(io.BytesIO(picture)).size) <= 208
    report = make_report(TokenDataset.open(open_folder(str(out))), 24)
    shown = [code for item in report.gallery for image in item.document.images for code in image.codes]
    assert " ".join(page.text.split()).count(str(shown[0])) >= 1
    assert len(shown) == 32 * num_pictures
    assert report.usage.totals.sum() == 32 * report.counts.images_written


def test_sources_that_are_gone_or_moved(tmp_path: Path) -> None:
    shard, out = tmp_path / "in/00001.tar", tmp_path / "out"
    shard.parent.mkdir()
    shutil.copy(ROOT / "samples/documents/00001.tar", shard)
    assert tokenize_obelics.main(["--input", str(shard), "--output", str(out), *FAST]) == 0
    shard.rename(tmp_path / "00001.tar")
    gone = _report(out, tmp_path)
    assert gone.pictures == []
    assert gone.text.count("source not found") == 12
    assert len(_report(out, tmp_path, "--sources", str(tmp_path)).pictures) == 12


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Three real photographs."""
    with tarfile.open(ROOT / "samples/pairs/00000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:3]
        return [tar.extractfile(name).read() for name in names]


def _parquet(folder: Path, pictures: list[bytes]) -> list[str]:
    """Published documents and a folder of downloaded pictures; the flags that tokenize them."""
    urls = [f"http://example.com/{number}.jpg" for number in range(3)]
    rows = [{"texts": ["before", None, "behind"], "images": [None, url, None]} for url in urls]
    pq.write_table(pa.Table.from_pylist(rows), folder / "docs.parquet")
    (folder / "images/00000").mkdir(parents=True)
    keys = [f"{number:09d}" for number in range(3)]
    for key, picture in zip(keys, pictures, strict=True):
        (folder / f"images/00000/{key}.jpg").write_bytes(picture)
    table = {"url": urls, "key": keys, "status": ["success"] * 3, "error_message": [None] * 3}
    pq.write_table(pa.table(table), folder / "images/00000.parquet")
    return ["--input", str(folder / "docs.parquet"), "--images", str(folder / "images")]


def _json_array(folder: Path, pictures: list[bytes]) -> list[str]:
    """The same for a JSON array in LLaVA's form."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"images/{number}.jpg").write_bytes(picture)
    values = [{"image": f"{number}.jpg", "conversations": turns} for number in range(3)]
    (folder / "mix.json").write_text(json.dumps(values))
    return ["--input", str(folder / "mix.json"), "--images", str(folder / "images")]


@pytest.mark.parametrize(("job", "make"), [(tokenize_obelics, _parquet), (tokenize_chats, _json_array)])
def test_pictures_that_lie_in_a_folder_of_their_own(tmp_path: Path, pictures, job, make) -> None:
    out = tmp_path / "out"
    assert job.main([*make(tmp_path, pictures), "--output", str(out), *FAST]) == 0
    page = _report(out, tmp_path)
    assert "of the source bytes" not in page.text  # which are those of the JSON alone, without the pictures
    shown = page.pictures  # the log of the run says where they are
    assert len(shown) == 3
    for thumbnail, picture in zip(shown, pictures, strict=True):
        small = Image.open(io.BytesIO(picture)).convert("RGB")
        small.thumbnail((208, 156))
        found = np.asarray(Image.open(io.BytesIO(thumbnail)), dtype=float)
        assert np.abs(found - np.asarray(small, dtype=float)).mean() < 8  # JPEG of quality 72
    (tmp_path / "images").rename(tmp_path / "moved")
    assert _report(out, tmp_path).pictures == []
    assert len(_report(out, tmp_path, "--images", str(tmp_path / "moved")).pictures) == 3


def test_code_usage() -> None:
    usage = CodesByPlace()
    usage.add(np.repeat(np.arange(4, dtype=np.uint16), 32))  # four images, each of one code
    assert (usage.totals > 0).sum() == 4
    assert usage.perplexity() == pytest.approx(4)
    assert usage.perplexity_by_place() == pytest.approx([4] * 32)
    usage.add(np.zeros(32 * 1000, np.uint16))
    assert 1 < usage.perplexity() < 1.1
    assert CodesByPlace().perplexity() == 0


def test_damage_of_a_shard_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "none.tar").touch()
    out = tmp_path / "out"
    status = tokenize_pairs.main(["--input", str(tmp_path / "none.tar"), "--output", str(out), *FAST])
    assert status == 1, "nothing could be used, and the report can still be looked at"
    assert "none.tar: the shard has zero bytes" in _report(out, tmp_path).text


def test_an_empty_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seed_shards(["report", str(tmp_path), "--output", str(tmp_path / "x.html")]) == 2
    assert "_dataset.json" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser(tmp_path: Path) -> None:
    """Headless Chromium shows it: the document it built has every picture loaded and no script run."""
    _hostile_pairs(tmp_path / "x.tar")
    assert (
        tokenize_pairs.main(["--input", str(tmp_path / "x.tar"), "--output", str(tmp_path / "out"), *FAST])
        == 0
    )
    _report(tmp_path / "out", tmp_path)
    command = [*chromium_command(tmp_path / "profile"), "--window-size=1200,2400"]
    address = (tmp_path / "report.html").as_uri()
    built = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120
    ).stdout
    assert HtmlPage(built).text.count("source damaged") == 0
    assert len(HtmlPage(built).pictures) == len(ATTACKS)
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", address], capture_output=True, timeout=120, check=True)
    colours = Image.open(shot).convert("RGB").getcolors(1 << 24) or []
    assert any(
        abs(r) < 12 and abs(g - 128) < 12 and abs(b - 128) < 12 for _, (r, g, b) in colours
    )  # the teal picture
