"""Pictures are decoded here or by helpers, each once, in any weather; codes cannot tell where."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.shared_decoder import Decoded, SharedDecoder, decode_many
from schemas.quarantine import RefusedError
from tests.pipeline.tiny_shards import png
from tokenizer.preprocess import PreprocessConfig, load_image


class SlowPool(DecodePool):
    """One local decoder that takes its time, so that there is work for helpers."""

    def __init__(self, max_in_flight: int) -> None:
        super().__init__(DecodePoolConfig(num_workers=0, max_in_flight=max_in_flight))
        self._threads_of_mine = ThreadPoolExecutor(1)
        self.in_hand: list[Future[DecodedFrames]] = []
        self.most_in_hand = 0

    def submit(
        self, task: DecodeTask, future: "Future[DecodedFrames] | None" = None
    ) -> "Future[DecodedFrames]":
        promise = future or Future()
        self.in_hand = [other for other in self.in_hand if not other.done()] + [promise]
        self.most_in_hand = max(self.most_in_hand, len(self.in_hand))

        def work() -> None:
            time.sleep(0.005)
            super(SlowPool, self).submit(task, promise)

        self._threads_of_mine.submit(work)
        return promise


class Helper:
    """A helper in threads of this process; can be told to fail."""

    def __init__(self, failing_after: int | None = None) -> None:
        self._pool = DecodePool(DecodePoolConfig(num_workers=0))
        self._threads = ThreadPoolExecutor(2)
        self._left = failing_after
        self.num_groups = 0

    def __call__(self, tasks: Sequence[DecodeTask]) -> "Future[list[Decoded]]":
        self.num_groups += 1
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                return self._threads.submit(self._die)
        return self._threads.submit(decode_many, self._pool, tasks)

    def _die(self) -> list[Decoded]:
        raise ConnectionError("the node is gone")


def check(decoder: SharedDecoder, count: int) -> None:
    """Submit sound and bad pictures; every future has the pixels of its own."""
    config = PreprocessConfig()
    futures = [
        decoder.submit(DecodeTask(b"bad" if index % 10 == 9 else png(index % 30))) for index in range(count)
    ]
    expected = {index: load_image(png(index), config) for index in range(30)}
    for index, future in enumerate(futures):
        if index % 10 == 9:
            with pytest.raises(RefusedError):
                future.result(timeout=30)
        else:
            assert np.array_equal(future.result(timeout=30).pixels[0], expected[index % 30])


def test_helpers_take_what_is_too_much_for_this_machine() -> None:
    decoder = SharedDecoder(SlowPool(3))
    decoder.set_helpers({"a": Helper(), "b": Helper()})
    check(decoder, 300)
    assert decoder.counts.helped > 100
    assert decoder.counts.local > 0
    assert decoder.counts.helped + decoder.counts.local == 300


def test_without_helpers_everything_is_decoded_here() -> None:
    decoder = SharedDecoder(SlowPool(3))
    check(decoder, 60)
    assert decoder.counts.local == 60


def test_few_pictures_do_not_wait_for_a_group_to_fill() -> None:
    decoder = SharedDecoder(SlowPool(2))
    decoder.set_helpers({"a": Helper()})
    check(decoder, 7)


@pytest.mark.parametrize("failing_after", [0, 1, 4])
def test_the_pictures_of_a_helper_that_dies_are_decoded_here(failing_after: int) -> None:
    decoder = SharedDecoder(SlowPool(3))
    decoder.set_helpers({"a": Helper(failing_after)})
    check(decoder, 150)
    assert decoder.counts.helpers_lost == 1


@pytest.mark.parametrize("num_too_many", [-8, -1, 1])
def test_the_pictures_of_a_helper_that_answers_with_another_number_are_decoded_here(
    num_too_many: int, caplog: pytest.LogCaptureFixture
) -> None:
    sound = Helper()

    def miscounting(tasks: Sequence[DecodeTask]) -> "Future[list[Decoded]]":
        return sound((list(tasks) + list(tasks))[: len(tasks) + num_too_many])

    decoder = SharedDecoder(SlowPool(3))
    decoder.set_helpers({"a": miscounting})
    check(decoder, 150)
    assert decoder.counts.helpers_lost == 1
    assert (decoder.counts.helped, decoder.counts.local) == (0, 150)
    assert f"it answered 8 pictures with {8 + num_too_many} results" in caplog.text


@pytest.mark.parametrize(("num_workers", "max_in_flight"), [(1, 1), (2, 1), (2, 2), (2, 8)])
def test_real_processes_with_few_places_do_not_wait_for_each_other(
    num_workers: int, max_in_flight: int
) -> None:
    """Pictures are submitted from the pool's own callbacks, which must not wait for a place there."""
    with DecodePool(DecodePoolConfig(num_workers=num_workers, max_in_flight=max_in_flight)) as pool:
        decoder = SharedDecoder(pool)
        decoder.set_helpers({"a": Helper(), "b": Helper(failing_after=2)})
        check(decoder, 200)


def test_what_the_pool_had_before_helpers_came_counts_as_its_share() -> None:
    pool = SlowPool(64)
    decoder = SharedDecoder(pool)
    before = [decoder.submit(DecodeTask(png(0))) for _ in range(40)]
    assert pool.most_in_hand > pool.config.slots_per_worker + 1
    decoder.set_helpers({"a": Helper()})
    pool.most_in_hand = 0
    check(decoder, 300)
    assert all(future.done() for future in before)
    assert decoder.counts.helped > 100
    assert pool.most_in_hand <= pool.config.slots_per_worker + 1


def test_helpers_that_come_and_go() -> None:
    decoder = SharedDecoder(SlowPool(3))
    is_over = threading.Event()

    def change() -> None:
        rng = random.Random(0)
        while not is_over.wait(0.002):
            names = [name for name in "abc" if rng.random() < 0.5]
            decoder.set_helpers({name: Helper(rng.choice([None, 1])) for name in names})

    thread = threading.Thread(target=change)
    thread.start()
    try:
        check(decoder, 300)
    finally:
        is_over.set()
        thread.join()
