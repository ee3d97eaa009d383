"""Streamed training pairs: nothing lost, held-out ones never seen, and batches a function of the step."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.inputs import SourceShard, expand_inputs
from pipeline.pair_stream import PairStream
from pipeline.training_pairs import PairDataConfig, group_of, is_held_out, read_held_out

NUM_SHARDS, PAIRS_PER_SHARD = 3, 20
DATA = PairDataConfig(held_out_fraction=0.2, shuffle_pairs=7, pairs_per_epoch=48)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[SourceShard]:
    """The third picture of each shard is damaged."""
    return write_shards(tmp_path_factory.mktemp("shards"), lambda index: index == 3)


@pytest.fixture(scope="module")
def poor_shards(tmp_path_factory: pytest.TempPathFactory) -> list[SourceShard]:
    """Of the pictures of each shard every other is damaged."""
    return write_shards(tmp_path_factory.mktemp("poor"), lambda index: index % 2 == 1)


def write_shards(folder: Path, is_damaged: Callable[[int], bool]) -> list[SourceShard]:
    """Small pictures whose caption is their key."""
    for number in range(NUM_SHARDS):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for index in range(PAIRS_PER_SHARD):
                key = f"{number:02}{index:03}"
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (number * 80, index * 12, 0)).save(stream, "PNG")
                image = stream.getvalue()[: 40 if is_damaged(index) else None]
                for suffix, data in (("png", image), ("txt", key.encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return expand_inputs([str(folder)])


def captions(stream: PairStream, steps: range) -> list[list[str]]:
    return [stream.batch(step).captions for step in steps]


def test_a_resumed_stream_equals_an_uninterrupted_one(shards: list[SourceShard]) -> None:
    whole = captions(PairStream(shards, DATA, 4, seed=1), range(20))
    assert captions(PairStream(shards, DATA, 4, seed=1), range(13, 20)) == whole[13:]
    again = PairStream(shards, DATA, 4, seed=1)
    captions(again, range(5, 9))
    assert captions(again, range(2, 4)) == whole[2:4]  # going back is allowed, too
    assert whole != captions(PairStream(shards, DATA, 4, seed=2), range(20))


def test_every_training_pair_comes_and_no_held_out_one(shards: list[SourceShard]) -> None:
    stream = PairStream(shards, DATA, 4, seed=0)
    seen = Counter(caption for batch in captions(stream, range(60)) for caption in batch)
    keys = {f"{n:02}{i:03}" for n in range(NUM_SHARDS) for i in range(PAIRS_PER_SHARD)}
    sound = {key for key in keys if not key.endswith("003")}
    kept = {key for key in sound if is_held_out(group_of(f"{int(key[:2]):05}", key, ""), 0.2)}
    assert set(seen) == sound - kept
    assert stream.refused["image_truncated"] + stream.refused["image_decode_error"] > 0
    held_out = read_held_out(shards, DATA)
    assert {pair.key for pair in held_out} == kept


def test_others_of_the_stream_stand_in_for_damaged_pictures(poor_shards: list[SourceShard]) -> None:
    """No batch holds a pair twice; every sound pair comes, and a resumed stream gives the same."""
    whole = captions(PairStream(poor_shards, DATA, 8, seed=1), range(20))
    assert all(len(batch) == len(set(batch)) == 8 for batch in whole)
    sound = {f"{n:02}{i:03}" for n in range(NUM_SHARDS) for i in range(0, PAIRS_PER_SHARD, 2)}
    kept = {key for key in sound if is_held_out(group_of(f"{int(key[:2]):05}", key, ""), 0.2)}
    assert {caption for batch in whole for caption in batch} == sound - kept
    for start in (1, 7, 19):
        resumed = PairStream(poor_shards, DATA, 8, seed=1)
        assert captions(resumed, range(start, 20)) == whole[start:]
    assert captions(resumed, range(3, 5)) == whole[3:5]


def test_what_was_refused_is_told_once_an_epoch(
    poor_shards: list[SourceShard], caplog: pytest.LogCaptureFixture
) -> None:
    stream = PairStream(poor_shards, DATA, 8, seed=1)
    assert stream.steps_per_epoch == 6
    captions(stream, range(5))
    assert not caplog.records
    captions(stream, range(5, 18))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["epoch=0", "epoch=1", "epoch=2"]
    last = caplog.records[-1].getMessage()
    assert f"pairs=48 replaced={stream.refused.total()} refused={stream.refused.total()} image_" in last
    assert stream.figures() == {"replaced_fraction": stream.refused.total() / 48}
    assert 0.3 < stream.figures()["replaced_fraction"] < 0.7


def test_samples_without_a_picture_or_caption_are_told_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shard,) = write_shards(tmp_path, lambda index: False)[:1]
    with tarfile.open(shard.url, "a") as tar:
        member = tarfile.TarInfo("alone.txt")
        tar.addfile(member, io.BytesIO())
    stream = PairStream([shard], DATA, 4, seed=0)
    captions(stream, range(stream.steps_per_epoch))
    assert f" refused={stream.refused['image_missing']} image_missing=" in caplog.text


def test_a_batch_larger_than_what_can_be_used_is_refused(poor_shards: list[SourceShard]) -> None:
    with pytest.raises(ValueError, match=r"step 0: only .* different pairs for a batch of 12"):
        PairStream(poor_shards[:1], DATA, 12, seed=0).batch(0)


def test_pictures_belong_to_their_captions(shards: list[SourceShard]) -> None:
    batch = PairStream(shards, DATA, 8, seed=0).batch(2)
    for image, caption in zip(batch.images, batch.captions, strict=True):
        assert np.array_equal(image[0, 0], [int(caption[:2]) * 80, int(caption[2:]) * 12, 0])


def test_ranks_read_different_shards(shards: list[SourceShard]) -> None:
    for epoch_steps in (range(4),):
        ranks = [PairStream(shards, DATA, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
        sources = [
            {caption[:2] for batch in captions(rank, epoch_steps) for caption in batch} for rank in ranks
        ]
        assert all(len(source) == 1 for source in sources)
        assert len(set.union(*sources)) == 3
    assert ranks[0].steps_per_epoch == 8


def test_settings_that_cannot_work_are_refused(shards: list[SourceShard]) -> None:
    with pytest.raises(ValueError, match="3 shards for 4 ranks"):
        PairStream(shards, DATA, 2, seed=0, world_size=4)
    with pytest.raises(ValueError, match="less than one batch"):
        PairStream(shards, DATA, 100, seed=0)
    with pytest.raises(ValueError, match="pairs_per_epoch must be given"):
        PairDataConfig(shuffle_pairs=10)


def test_shards_of_one_name_in_two_folders_are_both_read(shards: list[SourceShard], tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(Path(shards[1].url).read_bytes())
    data = PairDataConfig(input=(shards[0].url, str(tmp_path / "00000.tar"), shards[0].url))
    assert [shard.url for shard in data.shards()] == [shards[0].url, str(tmp_path / "00000.tar")]
    assert [shard.name for shard in data.shards()] == ["00000", "00000 (2)"]
    with pytest.raises(ValueError, match="no shards are given"):
        PairDataConfig().shards()
