"""Fills fixed-shape batches with the images of all shards in flight, and runs the model on them.

One thread owns the model. Shards hand in images as futures from the decoder and get futures of codes back,
so that a batch may hold images of several documents and shards while each shard stays in its own order.
The last slots of a batch that cannot be filled are zeros: a code never depends on its neighbours.

A partial batch runs only when nothing is in the model and nobody can add to it (every open shard waits for
results that it brings, and nothing is in decoding), or when no image came for ``flush_after_s``, so that one
slow reader does not hold back the rest.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from schemas.fingerprint import Fingerprint
from schemas.vocabulary import CODES_PER_IMAGE

logger = logging.getLogger(__name__)

FinishBatch = Callable[[], np.ndarray]
"""Waits for a batch that was started and gives its codes, (B, 32) uint16."""


class ImageEncoder(Protocol):
    """A tokenizer as the engine sees it."""

    fingerprint: Fingerprint

    def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
        """Start on at most ``batch_size`` images of (224, 224, 3) uint8, padded to ``batch_size``."""


class Frames(Protocol):
    """What a decoder gives: the pictures of one image (one) or video (several)."""

    pixels: np.ndarray
    """(N, 224, 224, 3) uint8."""
    times_s: tuple[float, ...]
    """Time of each frame; empty for an image."""
    decoder: str
    """What decoded a video; empty for an image."""


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """Their codes."""

    codes: np.ndarray
    """(N, 32) uint16."""
    times_s: tuple[float, ...]
    decoder: str = ""


class EncoderError(RuntimeError):
    """The model failed on a batch. The process that holds it should be replaced."""


@dataclass
class BatchStatistics:
    """Where the time of the model thread went."""

    images: int = 0
    batches: int = 0
    slots: int = 0
    """Images and padding."""
    busy_s: float = 0.0
    starved_s: float = 0.0
    """Time without a batch to run while a shard was open."""

    @property
    def wait_fraction(self) -> float:
        total = self.busy_s + self.starved_s
        return self.starved_s / total if total else 0.0


class _Collector:
    """Gathers the codes of the frames of one image or video, which may lie in several batches."""

    def __init__(self, frames: Frames, future: "Future[EncodedFrames]") -> None:
        self.future = future
        self._times_s = frames.times_s
        self._decoder = frames.decoder
        self._missing = len(frames.pixels)
        self._codes = np.empty((self._missing, CODES_PER_IMAGE), np.uint16)

    def put(self, index: int, codes: np.ndarray) -> None:
        self._codes[index] = codes
        self._missing -= 1
        if not self._missing:
            self.future.set_result(EncodedFrames(self._codes, self._times_s, self._decoder))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


_Slot = tuple[np.ndarray, _Collector, int]
"""One picture in a batch, whom its codes belong to, and which of its frames it is."""


class BatchingEncoder:
    """Shared by the shards in flight of one process; use as a context manager.

    Args:
        encoder: the tokenizer.
        batch_size: images in a batch, always.
        batches_in_flight: batches started before the first is waited for; 2 hides uploads to a GPU.
        flush_after_s: run a partial batch when no image arrived for so long.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        batch_size: int,
        *,
        batches_in_flight: int = 1,
        flush_after_s: float = 5.0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        self.encoder = encoder
        self.batch_size = batch_size
        self.statistics = BatchStatistics()
        self.batches_in_flight = batches_in_flight
        self._flush_after_s = flush_after_s
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ready: deque[_Slot] = deque()
        self._num_decoding = 0
        self._num_open = 0
        self._awaited: list[Future[EncodedFrames]] = []
        """What the shards wait for that wait, one for each."""
        self._last_arrival = time.monotonic()
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def open_shard(self) -> Iterator["BatchInput"]:
        """An input for one shard; while it is open and not blocked, partial batches wait for it."""
        with self._lock:
            self._num_open += 1
            if self._num_open == 1:
                self._changed.notify()  # the model's idle time counts from here on
        try:
            yield BatchInput(self)
        finally:
            with self._lock:
                self._num_open -= 1
                if self._num_open == 0 or self._can_run():
                    self._changed.notify()

    def close(self) -> None:
        """Run what can run and end the thread; what is in decoding, or waits for it, stays without codes."""
        with self._lock:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, decoded: "Future[Frames]") -> "Future[EncodedFrames]":
        encoded: Future[EncodedFrames] = Future()
        with self._lock:
            self._num_decoding += 1
        decoded.add_done_callback(lambda future: self._arrived(future, encoded))
        return encoded

    def _arrived(self, decoded: "Future[Frames]", encoded: "Future[EncodedFrames]") -> None:
        slots: list[_Slot] = []
        error: BaseException | None
        try:
            frames, error = decoded.result(), None
            collector = _Collector(frames, encoded)
            slots = [(image, collector, index) for index, image in enumerate(frames.pixels)]
        except CancelledError:
            error = DecodingCancelledError()
        except Exception as refusal:
            error = refusal
        with self._lock:
            self._num_decoding -= 1
            error = error or self._error
            if error is None:
                self._ready += slots
                self._last_arrival = time.monotonic()
            self._wake_if_due()
        if error is not None:
            encoded.set_exception(error)
        elif not slots:
            encoded.set_result(EncodedFrames(np.empty((0, CODES_PER_IMAGE), np.uint16), ()))

    @contextmanager
    def _waiting_for(self, encoded: "Future[EncodedFrames]") -> Iterator[None]:
        with self._lock:
            self._awaited.append(encoded)
            self._wake_if_due()
        try:
            yield
        finally:
            with self._lock:
                self._awaited.remove(encoded)

    def _wake_if_due(self) -> None:
        """Wake the model thread when there is a batch to run, not for every image: a wake-up takes the
        processor from a decoder."""
        if self._can_run():
            self._changed.notify()

    def _run(self) -> None:
        started: deque[tuple[list[_Slot], FinishBatch]] = deque()
        while True:
            batch = self._next_batch(is_idle=not started)
            begin = time.monotonic()
            try:
                if batch:
                    images = [image for image, _, _ in batch]
                    started.append((batch, self.encoder.start(images, self.batch_size)))
                if started and (not batch or len(started) >= self.batches_in_flight):
                    self._finish(*started[0])
                    started.popleft()
            except Exception as error:
                self._fail(
                    error, [slot for slots in (batch, *(slots for slots, _ in started)) for slot in slots]
                )
                return
            self.statistics.busy_s += time.monotonic() - begin
            if not batch and not started and self._is_closed:
                return

    def _finish(self, slots: list[_Slot], finish: FinishBatch) -> None:
        codes = finish()
        self.statistics.images += len(slots)
        self.statistics.slots += self.batch_size
        self.statistics.batches += 1
        for (_, collector, index), image_codes in zip(slots, codes, strict=False):
            collector.put(index, image_codes)

    def _next_batch(self, is_idle: bool) -> list[_Slot]:
        """A batch to run; empty at the end, and where none is full while the model has another."""
        with self._lock:
            if not is_idle and len(self._ready) < self.batch_size:
                return []
            while not self._can_run():
                if self._is_closed:
                    return []
                begin, was_open = time.monotonic(), self._num_open > 0
                waited_s = begin - self._last_arrival if self._ready else 0.0
                self._changed.wait(max(0.0, self._flush_after_s - waited_s))
                if was_open and self._num_open:
                    self.statistics.starved_s += time.monotonic() - begin
            size = min(self.batch_size, len(self._ready))
            return [self._ready.popleft() for _ in range(size)]

    def _can_run(self) -> bool:
        if len(self._ready) >= self.batch_size:
            return True
        if not self._ready:
            return False
        nobody_adds = self._num_decoding == 0 and self._are_all_stuck()
        return nobody_adds or time.monotonic() - self._last_arrival >= self._flush_after_s

    def _are_all_stuck(self) -> bool:
        """A shard whose result is there goes on, though its thread may not have woken yet."""
        return sum(not future.done() for future in self._awaited) >= self._num_open

    def _fail(self, error: Exception, slots: list[_Slot]) -> None:
        """Give every image that waits an error, now and later."""
        logger.error("the model failed", exc_info=error)
        wrapped = EncoderError(f"the model failed: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        with self._lock:
            self._error = wrapped
            slots = [*slots, *self._ready]
            self._ready.clear()
        for _, collector, _ in slots:
            collector.fail(wrapped)


class DecodingCancelledError(Exception):
    """The decoder gave up an image because it was closed."""


class BatchInput:
    """One shard's way into the batches."""

    def __init__(self, batching: BatchingEncoder) -> None:
        self._batching = batching

    def submit(self, decoded: "Future[Frames]") -> "Future[EncodedFrames]":
        """Codes for decoded pictures, as futures; errors pass through."""
        return self._batching._submit(decoded)

    def wait(self, encoded: "Future[EncodedFrames]", timeout_s: float) -> bool:
        """Wait until an image is done, well or ill; False if it is not after ``timeout_s``.

        Meanwhile partial batches need not wait for this shard.
        """
        if encoded.done():
            return True
        with self._batching._waiting_for(encoded):
            return bool(wait([encoded], timeout_s).done)
