"""Batches are shared and fixed in shape; every image gets its own codes; nobody waits for ever."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching_encoder import BatchingEncoder, EncoderError
from pipeline.null_encoder import NullEncoder, _hash_codes


@dataclass
class Frames:
    pixels: np.ndarray
    times_s: tuple[float, ...] = ()
    decoder: str = ""


def pictures(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 8, 3), dtype=np.uint8)


def decoded(pixels: np.ndarray) -> "Future[Frames]":
    future: Future[Frames] = Future()
    future.set_result(Frames(pixels))
    return future


class RecordingEncoder(NullEncoder):
    """Keeps the sizes of the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def start(self, images: list[np.ndarray], batch_size: int):
        self.sizes.append(len(images))
        return super().start(images, batch_size)


@given(
    sizes=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4),
    batch_size=st.integers(1, 7),
    batches_in_flight=st.integers(1, 3),
)
@settings(deadline=None, max_examples=40)
def test_every_frame_gets_the_codes_of_its_own_pixels(
    sizes: list[list[int]], batch_size: int, batches_in_flight: int
) -> None:
    with BatchingEncoder(
        NullEncoder(), batch_size, batches_in_flight=batches_in_flight, flush_after_s=60
    ) as batching:
        results: dict[tuple[int, int], np.ndarray] = {}

        def work(shard: int) -> None:
            with batching.open_shard() as batches:
                pending = [
                    batches.submit(decoded(pictures(100 * shard + index, count)))
                    for index, count in enumerate(sizes[shard])
                ]
                for index, future in enumerate(pending):
                    assert batches.wait(future, timeout_s=20)
                    results[shard, index] = future.result().codes

        threads = [threading.Thread(target=work, args=(shard,)) for shard in range(len(sizes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    for shard, counts in enumerate(sizes):
        for index, count in enumerate(counts):
            expected = [_hash_codes(picture) for picture in pictures(100 * shard + index, count)]
            assert np.array_equal(results[shard, index], np.array(expected).reshape(-1, 32))


def test_shards_fill_batches_together() -> None:
    encoder = RecordingEncoder()
    with (
        BatchingEncoder(encoder, 4, flush_after_s=60) as batching,
        batching.open_shard() as first,
        batching.open_shard() as second,
    ):
        futures = [
            batches.submit(decoded(pictures(seed))) for seed, batches in enumerate([first, second] * 2)
        ]
        assert all(future.result(timeout=10) for future in futures)
    assert encoder.sizes == [4]


def test_a_partial_batch_waits_for_a_shard_that_still_reads_and_runs_when_it_waits_too() -> None:
    with (
        BatchingEncoder(NullEncoder(), 4, flush_after_s=60) as batching,
        batching.open_shard() as reading,
        batching.open_shard() as done,
    ):
        last = done.submit(decoded(pictures(0)))
        assert not done.wait(last, timeout_s=0.2), "the other shard may still add to the batch"
        mine = reading.submit(decoded(pictures(1)))
        waiting = threading.Thread(target=lambda: done.wait(last, timeout_s=20))
        waiting.start()
        assert reading.wait(mine, timeout_s=20)
        waiting.join(timeout=20)
        assert last.done()


class HeldEncoder(RecordingEncoder):
    """Its batches end when they may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_finish = threading.Event()

    def start(self, images: list[np.ndarray], batch_size: int):
        codes = super().start(images, batch_size)()

        def finish() -> np.ndarray:
            assert self.may_finish.wait(20)
            return codes

        return finish


def test_a_partial_batch_waits_for_the_one_in_the_model_whose_results_let_a_shard_go_on() -> None:
    encoder = HeldEncoder()
    with (
        BatchingEncoder(encoder, 4, batches_in_flight=2, flush_after_s=60) as batching,
        batching.open_shard() as first,
        batching.open_shard() as second,
    ):
        begun = [first.submit(decoded(pictures(seed))) for seed in range(4)]
        rest = second.submit(decoded(pictures(4)))

        def go_on() -> None:
            assert first.wait(begun[0], timeout_s=20)
            more = [first.submit(decoded(pictures(seed))) for seed in range(5, 8)]
            assert first.wait(more[-1], timeout_s=20)

        shard = threading.Thread(target=go_on)
        shard.start()
        assert not second.wait(rest, timeout_s=0.2)
        assert encoder.sizes == [4], "both shards wait, but the second batch is not full"
        encoder.may_finish.set()
        assert second.wait(rest, timeout_s=20)
        shard.join(timeout=20)
    assert encoder.sizes == [4, 4]


def test_images_in_decoding_are_waited_for() -> None:
    encoder = RecordingEncoder()
    slow: Future[Frames] = Future()
    with BatchingEncoder(encoder, 2, flush_after_s=60) as batching, batching.open_shard() as batches:
        first, second = batches.submit(decoded(pictures(0))), batches.submit(slow)
        assert not batches.wait(first, timeout_s=0.2)
        slow.set_result(Frames(pictures(1)))
        assert batches.wait(second, timeout_s=20)
    assert encoder.sizes == [2]


def test_a_slow_reader_does_not_hold_back_the_others_for_long() -> None:
    with (
        BatchingEncoder(NullEncoder(), 4, flush_after_s=0.2) as batching,
        batching.open_shard(),
        batching.open_shard() as batches,
    ):
        assert batches.wait(batches.submit(decoded(pictures(0))), timeout_s=10)


def test_a_refused_image_comes_back_as_its_error() -> None:
    failed: Future[Frames] = Future()
    failed.set_exception(ValueError("no picture"))
    with BatchingEncoder(NullEncoder(), 4) as batching, batching.open_shard() as batches:
        future = batches.submit(failed)
        assert batches.wait(future, timeout_s=5)
        with pytest.raises(ValueError, match="no picture"):
            future.result()


class BrokenEncoder(NullEncoder):
    def start(self, images: list[np.ndarray], batch_size: int):
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_model_that_fails_fails_every_image_that_waits_and_all_that_come() -> None:
    with BatchingEncoder(BrokenEncoder(), 2) as batching, batching.open_shard() as batches:
        futures = [batches.submit(decoded(pictures(seed))) for seed in range(5)]
        for future in futures:
            with pytest.raises(EncoderError, match="device-side assert"):
                future.result(timeout=10)


class SlowEncoder(NullEncoder):
    def start(self, images: list[np.ndarray], batch_size: int):
        time.sleep(0.05)
        return super().start(images, batch_size)


def test_the_wait_fraction_tells_a_starved_model_from_a_busy_one() -> None:
    def wait_fraction(pause_s: float) -> float:
        with BatchingEncoder(SlowEncoder(), 1) as batching, batching.open_shard() as batches:
            for seed in range(8):
                time.sleep(pause_s)
                last = batches.submit(decoded(pictures(seed)))
            batches.wait(last, 10)
            return batching.statistics.wait_fraction

    assert wait_fraction(0.0) < 0.4
    assert wait_fraction(0.15) > 0.5


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        BatchingEncoder(NullEncoder(), 0)


def test_time_before_a_shard_is_open_is_not_waiting() -> None:
    with BatchingEncoder(NullEncoder(), 1) as batching:
        time.sleep(2.0)
        with batching.open_shard() as shard:
            shard.submit(decoded(pictures(1))).result(60)
        assert batching.statistics.starved_s < 1.0
