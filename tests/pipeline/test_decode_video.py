"""Clips through the decode processes: the same frames as in this process, and one crash costs one clip."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import DecodedFrames, DecodeTask, TaskKind, decode_task
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.video_frames import FrameSampling
from schemas.quarantine import Reason, RefusedError
from tokenizer.preprocess import PreprocessConfig

ROOT = Path(__file__).parents[2]


def _clips(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [member for member in tar.getmembers() if not member.name.endswith((".json", ".txt"))]
        return {member.name.split(".")[0]: tar.extractfile(member).read() for member in members}


def _task(data: bytes, sampling: FrameSampling) -> DecodeTask:
    return DecodeTask(data, TaskKind.VIDEO, sampling.num_frames, sampling.to_json())


def test_processes_give_the_same_frames_times_and_decoder() -> None:
    clips = _clips((ROOT / "samples/videos/00000.tar").read_bytes())
    hostile = _clips(gzip.decompress((ROOT / "tests/data/hostile/tars/videos.tar.gz").read_bytes()))
    sampling = FrameSampling(num_frames=3)
    config = DecodePoolConfig(num_workers=2, frames_per_task=3)
    with DecodePool(config) as pool:
        futures = {key: pool.submit(_task(data, sampling)) for key, data in {**clips, **hostile}.items()}
        for key, data in {**clips, **hostile}.items():
            here = _outcome(lambda data=data: decode_task(_task(data, sampling), PreprocessConfig()))
            there = _outcome(futures[key].result)
            if isinstance(here, Reason):
                assert there is here, key
                continue
            assert np.array_equal(there.pixels, here.pixels), key
            assert there.pixels.shape == (3, 224, 224, 3)
            assert (there.times_s, there.decoder) == (here.times_s, here.decoder), key


def _outcome(decode: Callable[[], DecodedFrames]) -> DecodedFrames | Reason:
    try:
        return decode()
    except RefusedError as error:
        return error.reason


def test_limits_of_pictures_hold_for_frames() -> None:
    hostile = _clips(gzip.decompress((ROOT / "tests/data/hostile/tars/videos.tar.gz").read_bytes()))
    with pytest.raises(RefusedError) as caught:
        decode_task(_task(hostile["vid_size_2x2"], FrameSampling()), PreprocessConfig(min_side=8))
    assert caught.value.reason is Reason.IMAGE_TOO_SMALL
