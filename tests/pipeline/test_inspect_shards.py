"""`seed-shards` tells what is there, and finds every kind of fault that is put in."""

import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.encode_shard import ShardSettings
from pipeline.inspect_shards import main
from pipeline.null_encoder import NullEncoder
from pipeline.shard_task import ShardFailure, ShardTask, ledger_name
from pipeline.sources.records import RawDocument, RawImage
from pipeline.storage import LocalFolder
from pipeline.token_dataset import DatasetManifest, TokenDataset
from schemas.fingerprint import Fingerprint
from schemas.token_shard import FOOTER_KEY, SCHEMA
from tests.pipeline.tiny_shards import (
    ledger_of,
    open_encoder,
    png,
    run_job,
    task_for,
    write_shards,
    write_tar,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Input in ``in``, token shards of its three source shards in ``out``."""
    root = tmp_path_factory.mktemp("made")
    source = write_shards(root / "in", 3, 14)
    TokenDataset.claim(LocalFolder(root / "out"), DatasetManifest("pairs", NullEncoder().fingerprint))
    with open_encoder(root / "out") as encoder:
        for path in sorted(source.iterdir()):
            encoder.encode(task_for(path))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def seed_shards(*arguments: str) -> tuple[int, str]:
    output = io.StringIO()
    return main(list(arguments), output), output.getvalue()


def test_info(root: Path) -> None:
    status, text = seed_shards("info", str(root / "out"), "--json")
    fields = json.loads(text)
    assert status == 0
    assert (fields["token_shards"], fields["documents"], fields["samples_quarantined"]) == (3, 36, 6)
    assert fields["fingerprint"] == NullEncoder().fingerprint.hex
    assert fields["bytes"] == sum(path.stat().st_size for path in (root / "out").glob("*.parquet"))
    assert fields["bytes_per_image"] == round(fields["bytes"] / 36, 1)


def test_status_of_a_finished_folder(root: Path) -> None:
    status, text = seed_shards("status", str(root / "out"), "--input", str(root / "in"))
    assert status == 0
    assert "missing              0" in text
    assert '{"image_not_an_image": 6}' in text
    assert "conservation         holds" in text


def test_status_names_what_is_missing_and_what_failed(root: Path) -> None:
    (root / "out" / "00001.parquet").unlink()
    (root / "out" / "00002.parquet").unlink()
    dataset = TokenDataset.open(LocalFolder(root / "out"))
    dataset.set_aside(ShardFailure("00002", "in/00002.tar", "OSError: bad sector", 3))
    status, text = seed_shards("status", str(root / "out"), "--input", str(root / "in"))
    assert status == 1
    assert "missing 00001" in text
    assert "failed 00002: OSError: bad sector" in text


def test_show_prints_documents(root: Path) -> None:
    status, text = seed_shards("show", str(root / "out"), "--shard", "00001", "--start", "1", "--limit", "2")
    assert status == 0
    assert text.count("--- ") == 2
    assert '"caption 15"' in text
    assert "<image: " in text


def test_a_sound_folder_has_no_faults(root: Path) -> None:
    assert seed_shards("validate", str(root / "out")) == (0, "3 token shards checked, 0 faults\n")


def rewrite_footer(path: Path, change: Callable[[dict], None]) -> None:
    """Write a token shard again with a changed footer."""
    table = pq.read_table(path)
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    change(footer)
    schema = SCHEMA.with_metadata({FOOTER_KEY: json.dumps(footer)})
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), path)


def other_fingerprint(footer: dict) -> None:
    footer["fingerprint_components"]["weights"] = "others"
    footer["fingerprint"] = Fingerprint(footer["fingerprint_components"]).hex


def lose_samples(footer: dict) -> None:
    footer["counts"]["samples_read"] += 1


def rename_ledger_source(out: Path) -> None:
    """A ledger of another source, with the hash that fits."""
    ledger = ledger_of(out / "00000.parquet")
    lines = [json.loads(line) | {"source": "b.tar"} for line in ledger.read_text().splitlines()]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    digest = hashlib.sha256(ledger.read_bytes()).hexdigest()
    ledger.rename(out / ledger_name("00000", digest))
    rewrite_footer(out / "00000.parquet", lambda footer: footer["quarantine"].update(sha256=digest))


def miscount_ledger(footer: dict) -> None:
    footer["quarantine"]["num_records"] += 1


def no_ledger(footer: dict) -> None:
    footer["quarantine"] = None


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda out: os.truncate(out / "00000.parquet", 500), r"00000\.parquet"),
    "garbage": (lambda out: (out / "00000.parquet").write_bytes(b"x" * 50), r"00000\.parquet"),
    "other tokenizer": (
        lambda out: rewrite_footer(out / "00000.parquet", other_fingerprint), "weights: others here"
    ),
    "kind": (
        lambda out: rewrite_footer(out / "00000.parquet", lambda footer: footer.update(kind="chats")),
        "kind chats, the folder holds pairs",
    ),
    "balance": (lambda out: rewrite_footer(out / "00000.parquet", lose_samples), "15 samples read, but 12"),
    "ledger missing": (lambda out: ledger_of(out / "00001.parquet").unlink(), "00001.*jsonl: missing"),
    "ledger changed": (
        lambda out: ledger_of(out / "00001.parquet").write_bytes(b"{}\n"), "is not what its token shard was"
    ),
    "ledger of another source": (rename_ledger_source, r"names b\.tar as source, its token shard .*0\.tar"),
    "ledger miscounted": (
        lambda out: rewrite_footer(out / "00000.parquet", miscount_ledger), "holds 2 records, counted 3"
    ),
    "no ledger": (
        lambda out: rewrite_footer(out / "00000.parquet", no_ledger), "2 samples quarantined, but no ledger"
    ),
    "twice": (
        lambda out: [
            shutil.copy(path, out / path.name.replace("00000", "copy", 1)) for path in out.glob("00000*")
        ],
        "tokenized twice, as 00000 and copy",
    ),
}  # fmt: skip


@pytest.mark.parametrize("num_dropped", [0, 2])
def test_validate_compares_the_images_of_the_ledger_with_the_counts(num_dropped: int, tmp_path: Path) -> None:
    """A page that lacks one image of two; the footer is made to say another number."""
    page = RawDocument("page", (RawImage(png(1), "png"), RawImage(b"no picture", "png")))
    sound = RawDocument("sound", (RawImage(png(2), "png"),))
    fingerprint = NullEncoder().fingerprint
    TokenDataset.claim(LocalFolder(tmp_path), DatasetManifest("interleaved", fingerprint))
    shard_settings = ShardSettings(kind="interleaved", fingerprint=fingerprint, on_bad_image="drop-image")
    with open_encoder(tmp_path, read=lambda task: iter([page, sound]), settings=shard_settings) as encoder:
        encoder.encode(ShardTask("a", "a.tar"))
    assert seed_shards("validate", str(tmp_path))[0] == 0

    def miscount(footer: dict) -> None:
        footer["counts"]["images_dropped"] = {"image_not_an_image": num_dropped}
        footer["counts"]["images_read"] = 2 + num_dropped

    rewrite_footer(tmp_path / "a.parquet", miscount)
    status, text = seed_shards("validate", str(tmp_path))
    assert status == 1
    assert "holds images {'image_not_an_image': 1}, counted" in text


@pytest.mark.parametrize("name", FAULTS)
def test_validate_finds(name: str, root: Path) -> None:
    damage, expected = FAULTS[name]
    damage(root / "out")
    status, text = seed_shards("validate", str(root / "out"))
    assert status == 1
    assert re.search(expected, text), text


def test_clean_removes_old_unfinished_files_only(root: Path) -> None:
    old, young = (root / "out" / f".tmp-{name}.parquet-1" for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 1e6, time.time() - 1e6))
    status, _ = seed_shards("clean", str(root / "out"))
    assert status == 0
    assert not old.exists()
    assert young.exists()


def test_a_ledger_that_no_token_shard_names_is_no_fault_and_clean_removes_it(root: Path) -> None:
    out = root / "out"
    orphan = ledger_of(out / "00002.parquet")
    (out / "00002.parquet").unlink()
    replaced = out / "00000.quarantine-01234567.jsonl"
    replaced.write_bytes(b"")
    status, text = seed_shards("validate", str(out))
    assert status == 0, text
    assert f"note: {orphan.name}: no token shard names this ledger" in text
    assert f"note: {replaced.name}: " in text
    seed_shards("clean", str(out))
    assert orphan.exists(), "a run may be about to commit the token shard"
    os.utime(orphan, (time.time() - 1e6,) * 2)
    seed_shards("clean", str(out))
    assert not orphan.exists()
    assert seed_shards("clean", str(out), "--older-than-hours", "0")[0] == 0
    assert not replaced.exists()
    assert ledger_of(out / "00000.parquet").exists()
    assert seed_shards("validate", str(out)) == (0, "2 token shards checked, 0 faults\n")


@pytest.mark.parametrize("command", ["info", "status", "validate", "show"])
def test_a_folder_that_is_none(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seed_shards(command, str(tmp_path / "nowhere"))[0] == 2
    assert f"{tmp_path / 'nowhere'}: no such folder\n" in capsys.readouterr().err
    assert seed_shards(command, str(tmp_path))[0] == 2
    assert f"{tmp_path}: no folder of token shards (_dataset.json is missing)" in capsys.readouterr().err
    (tmp_path / "packed-00000.parquet").touch()
    assert seed_shards(command, str(tmp_path))[0] == 2
    assert f"look at it with `seed-pack show {tmp_path}`" in capsys.readouterr().err


def test_a_shard_whose_name_begins_with_an_underscore_is_one_like_any_other(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", 1, 14) / "00000.tar"
    source.rename(source.with_name("_a.tar"))
    for expected in ("1 token shard written", "nothing to do: 1 token shard was there before"):
        result = run_job("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
        assert (result.returncode, expected in result.stdout) == (0, True), result.stdout + result.stderr
    assert seed_shards("validate", str(tmp_path / "out")) == (0, "1 token shard checked, 0 faults\n")


@pytest.mark.parametrize("name", ["_logs/a", "_failed/part/a", ".tmp-a"])
def test_a_shard_that_nobody_would_find_again_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / f"{name}.tar"
    path.parent.mkdir(parents=True)
    write_tar(path, [])
    pattern = f"{tmp_path}/in/./{name}.tar"
    result = run_job("--input", pattern, "--output", str(tmp_path / "out"))
    assert result.returncode != 0
    assert f"the name '{name}' is kept for files of our own" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
