"""Decoding on this machine first, and on helpers elsewhere when its processes have their hands full.

A picture goes to the local processes while they are short of work. What is left over is gathered into small
groups for the helpers; whenever a local process becomes free it takes from what is left over, so that no
picture waits for a group to fill. A helper that fails costs nothing: its pictures are decoded here.

The caller bounds what is under way (`encode_shard`), so nothing here blocks.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pipeline.decode import DecodedFrames, DecodeError, DecodeTask
from pipeline.decode_pool import DecodePool

logger = logging.getLogger(__name__)

Decoded = DecodedFrames | DecodeError
DecodeMany = Callable[[Sequence[DecodeTask]], "Future[list[Decoded]]"]
"""A helper: decodes several tasks, in order; its future fails if the helper is gone."""

GROUP_SIZE = 8
"""Pictures sent to a helper at a time: about 1 MB in, 1.2 MB out, and one call to pay for."""
GROUPS_PER_HELPER = 8


@dataclass
class _Waiting:
    task: DecodeTask
    future: "Future[DecodedFrames]"


@dataclass
class _Helper:
    decode: DecodeMany
    num_groups: int = 0
    """Under way."""


@dataclass
class DecodeCounts:
    """Where pictures were decoded."""

    local: int = 0
    helped: int = 0
    helpers_lost: int = field(default=0)


class SharedDecoder:
    """Thread-safe; owns neither the pool nor the helpers.

    Args:
        pool: the local processes.
    """

    def __init__(self, pool: DecodePool) -> None:
        self.counts = DecodeCounts()
        self._pool = pool
        # The pool frees the place of a task only after its callbacks, in which we submit the next one: with
        # all places in use, every thread of the pool could wait there for another to free one.
        num_workers = max(1, pool.config.num_workers)
        self._local_capacity = pool.config.max_in_flight - num_workers
        if self._local_capacity < 1:
            raise ValueError(f"decode.max_in_flight must be above {num_workers}, the number of workers")
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._num_local = 0
        self._helpers: dict[str, _Helper] = {}

    def set_helpers(self, helpers: Mapping[str, DecodeMany]) -> None:
        """The helpers there are from now on, by name; groups under way with others still count."""
        with self._lock:
            for name in self._helpers.keys() - helpers.keys():
                del self._helpers[name]
            for name, decode in helpers.items():
                self._helpers.setdefault(name, _Helper(decode))
        self._dispatch()

    def submit(self, task: DecodeTask) -> "Future[DecodedFrames]":
        """Decode one task somewhere; a refused one fails with DecodeError."""
        future: Future[DecodedFrames] = Future()
        with self._lock:
            self._waiting.append(_Waiting(task, future))
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        """Send out what can be sent."""
        while True:
            with self._lock:
                local = self._waiting and self._num_local < self._local_capacity
                name = None if local else self._free_helper()
                if local:
                    self._num_local += 1
                    group = [self._waiting.popleft()]
                elif name is not None:
                    helper = self._helpers[name]
                    helper.num_groups += 1
                    group = [self._waiting.popleft() for _ in range(GROUP_SIZE)]
                else:
                    return
            if name is None:
                self._decode_here(group[0])
            else:
                self._decode_there(name, helper, group)

    def _free_helper(self) -> str | None:
        """The least busy helper, if there is a whole group for it."""
        if len(self._waiting) < GROUP_SIZE or not self._helpers:
            return None
        name = min(self._helpers, key=lambda name: self._helpers[name].num_groups)
        return name if self._helpers[name].num_groups < GROUPS_PER_HELPER else None

    def _decode_here(self, waiting: _Waiting) -> None:
        def done(decoded: "Future[DecodedFrames]") -> None:
            with self._lock:
                self._num_local -= 1
                self.counts.local += 1
            _pass_on(decoded, waiting.future)
            self._dispatch()

        try:
            decoded = self._pool.submit(waiting.task)
        except RuntimeError:  # the pool was closed: the run is over
            waiting.future.cancel()
        else:
            decoded.add_done_callback(done)

    def _decode_there(self, name: str, helper: _Helper, group: list[_Waiting]) -> None:
        def done(decoded: "Future[list[Decoded]]") -> None:
            error = decoded.exception()
            with self._lock:
                helper.num_groups -= 1
                if error is not None:
                    self.counts.helpers_lost += self._helpers.pop(name, None) is not None
                    self._waiting.extendleft(reversed(group))
                else:
                    self.counts.helped += len(group)
            if error is not None:
                logger.warning("decode helper %s is gone (%s); its pictures are decoded here", name, error)
            else:
                for waiting, result in zip(group, decoded.result(), strict=True):
                    if isinstance(result, DecodeError):
                        waiting.future.set_exception(result)
                    else:
                        waiting.future.set_result(result)
            self._dispatch()

        helper.decode([waiting.task for waiting in group]).add_done_callback(done)


def _pass_on(source: "Future[DecodedFrames]", target: "Future[DecodedFrames]") -> None:
    if source.cancelled():
        target.cancel()
    elif (error := source.exception()) is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())


def decode_many(pool: DecodePool, tasks: Sequence[DecodeTask]) -> list[Decoded]:
    """What a helper does: decode several tasks, in order; refusals come back as values."""
    futures = [pool.submit(task) for task in tasks]
    results: list[Decoded] = []
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, DecodeError):
            raise error
        results.append(error if isinstance(error, DecodeError) else future.result())
    return results
