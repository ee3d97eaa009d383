"""Groups of training pairs: what counts as one picture, and that nothing is lost where keys repeat."""

import dataclasses
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.training_pairs import PairBatches, PairDataConfig, group_of, split_pairs
from tokenizer.preprocess import PreprocessConfig

NUM_SHARDS, PAIRS_PER_SHARD = 4, 15


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with shards of the same names, each of which numbers its samples from zero."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        folder = root / f"folder{shard % 2}"
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / f"{shard // 2:05}.tar", "w") as tar:
            for index in range(PAIRS_PER_SHARD):
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (shard * 60, index * 16, 0)).save(stream, "PNG")
                for suffix, data in (("png", stream.getvalue()), ("txt", f"{index} of {shard}".encode())):
                    member = tarfile.TarInfo(f"{index:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return sorted(root.iterdir())


def test_keys_that_repeat_between_shards_lose_nothing(folders: list[Path]) -> None:
    train, kept = split_pairs(PairDataConfig(input=tuple(map(str, folders)), held_out_fraction=0.1))
    assert kept
    assert len(train) + len(kept) == NUM_SHARDS * PAIRS_PER_SHARD
    batches = PairBatches(train, 2, seed=0)
    assert batches.steps_per_epoch == len(train) // 2
    seen = [caption for step in range(batches.steps_per_epoch) for caption in batches.batch(step).captions]
    assert len(seen) == len(set(seen)) == len(train) // 2 * 2


def test_a_pattern_whose_keys_repeat_between_shards_is_warned_of(
    folders: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = PairDataConfig(input=tuple(map(str, folders)), held_out_fraction=0.1, group_pattern="_[a-z]")
    train, _ = split_pairs(data)
    found = len({pair.group for pair in train})
    assert len(train) == NUM_SHARDS * found
    assert f"{len(train)} pairs with {found} different keys make {found} groups" in caplog.text


def test_a_pattern_is_warned_of_only_if_it_swallows_much(
    folders: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = str(folders[0] / "00000.tar")
    data = PairDataConfig(input=(shard,), held_out_fraction=0.1, group_pattern="[5-9]$")
    train, _ = split_pairs(data)
    assert 1 < len({pair.group for pair in train}) < len(train)
    assert not caplog.records
    monkeypatch.setattr("pipeline.training_pairs.MANY_VARIANTS", 1)
    split_pairs(data)
    assert "data.group_pattern '[5-9]$'" in caplog.text


STREAM = PairDataConfig(shuffle_pairs=5, pairs_per_epoch=10)


@pytest.mark.parametrize(
    "change",
    [
        {"preprocess": PreprocessConfig(color="clean")},
        {"group_pattern": "_x"},
        {"held_out_fraction": 0.3},
        {"shuffle_pairs": 6},
        {"shuffle_pairs": 0},
    ],
    ids=str,
)
def test_what_decides_the_pairs_is_in_the_settings(change: dict[str, Any], folders: list[Path]) -> None:
    shards = dataclasses.replace(STREAM, input=(str(folders[0]),)).shards()
    other = dataclasses.replace(STREAM, **change)
    assert STREAM.settings(shards, 1) == STREAM.settings(list(shards), 1)
    assert STREAM.settings(shards, 1) != other.settings(shards, 1)
    assert STREAM.settings(shards, 1) != STREAM.settings(shards[::-1], 1)
    assert STREAM.settings(shards, 1) != STREAM.settings(shards[:1], 1)


def test_shards_may_move_and_only_a_stream_depends_on_the_number_of_ranks(
    folders: list[Path], tmp_path: Path
) -> None:
    before = PairDataConfig(input=(str(folders[0]),))
    moved = PairDataConfig(input=(str(shutil.copytree(folders[0], tmp_path / "moved")),))
    assert before.settings(before.shards(), 1) == moved.settings(moved.shards(), 4)
    assert STREAM.settings(before.shards(), 1) != STREAM.settings(before.shards(), 4)


def test_groups() -> None:
    assert group_of("a", "0001", "") != group_of("b", "0001", "")
    assert group_of("a", "1f436_1f3fb", "_1f3f[b-f]") == group_of("b", "1f436", "_1f3f[b-f]") == "1f436"
