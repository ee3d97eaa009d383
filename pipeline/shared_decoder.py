"""Decoding on this machine first, and on helpers elsewhere when its processes have their hands full.

A picture goes to the local processes while they are short of work. What is left over is gathered into small
groups for the helpers; whenever a local process becomes free it takes from what is left over, so that no
picture waits for a group to fill. A helper that fails, or whose answer is not one result for each picture,
costs nothing: its pictures are decoded here, and it gets no more.

The caller bounds what is under way (`encode_shard`), so nothing here blocks.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool
from schemas.quarantine import RefusedError

logger = logging.getLogger(__name__)

Decoded = DecodedFrames | RefusedError
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
        self._places = pool.config.max_in_flight
        self._in_hand = min(self._places, max(1, pool.config.num_workers) * pool.config.slots_per_worker)
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

    @property
    def _local_capacity(self) -> int:
        """Pictures that the pool gets at a time: where there are helpers, what its processes hold in hand."""
        return self._in_hand if self._helpers else self._places

    def submit(self, task: DecodeTask) -> "Future[DecodedFrames]":
        """Decode one task somewhere; a refused one fails with RefusedError."""
        waiting = _Waiting(task, Future())
        with self._lock:
            is_local = not self._waiting and self._num_local < self._local_capacity
            if is_local:
                self._num_local += 1
            else:
                self._waiting.append(waiting)
        if is_local:
            self._decode_here(waiting)
        else:
            self._dispatch()
        return waiting.future

    def _dispatch(self) -> None:
        """Send out what can be sent."""
        with self._lock:
            num_free = max(0, self._local_capacity - self._num_local)  # it shrinks when helpers come
            here = [self._waiting.popleft() for _ in range(min(num_free, len(self._waiting)))]
            self._num_local += len(here)
        for waiting in here:
            self._decode_here(waiting)
        while self._helpers:
            with self._lock:
                name = self._free_helper()
                if name is None:
                    return
                helper = self._helpers[name]
                helper.num_groups += 1
                group = [self._waiting.popleft() for _ in range(GROUP_SIZE)]
            self._decode_there(name, helper, group)

    def _free_helper(self) -> str | None:
        """The least busy helper, if there is a whole group for it."""
        if len(self._waiting) < GROUP_SIZE or not self._helpers:
            return None
        name = min(self._helpers, key=lambda name: self._helpers[name].num_groups)
        return name if self._helpers[name].num_groups < GROUPS_PER_HELPER else None

    def _decode_here(self, waiting: _Waiting) -> None:
        try:
            self._pool.submit(waiting.task, waiting.future)
        except RuntimeError:  # the pool was closed: the run is over
            waiting.future.cancel()
        else:
            waiting.future.add_done_callback(self._decoded_here)

    def _decoded_here(self, _: "Future[DecodedFrames]") -> None:
        with self._lock:
            self._num_local -= 1
            self.counts.local += 1
            is_more = bool(self._waiting)
        if is_more:
            self._dispatch()

    def _decode_there(self, name: str, helper: _Helper, group: list[_Waiting]) -> None:
        def done(decoded: "Future[list[Decoded]]") -> None:
            error = failure_of(decoded, len(group))
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
                    if isinstance(result, RefusedError):
                        waiting.future.set_exception(result)
                    else:
                        waiting.future.set_result(result)
            self._dispatch()

        helper.decode([waiting.task for waiting in group]).add_done_callback(done)


def failure_of(decoded: "Future[list[Decoded]]", num_tasks: int) -> BaseException | None:
    """Why the answer of a helper cannot be used, or None if it has one result for each of its tasks."""
    error = decoded.exception()
    if error is not None:
        return error
    results = decoded.result()
    if len(results) != num_tasks:
        return ValueError(f"it answered {num_tasks} pictures with {len(results)} results")
    return None


def decode_many(pool: DecodePool, tasks: Sequence[DecodeTask]) -> list[Decoded]:
    """What a helper does: decode several tasks, in order; refusals come back as values."""
    futures = [pool.submit(task) for task in tasks]
    results: list[Decoded] = []
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, RefusedError):
            raise error
        results.append(error if isinstance(error, RefusedError) else future.result())
    return results
