"""Decode helpers: actors on nodes without GPU that decode for the actors that have one (`shared_decoder`)."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.decode import DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.error_text import one_line
from pipeline.shared_decoder import Decoded, decode_many

logger = logging.getLogger(__name__)

INTRODUCE_EVERY_S = 30.0
"""Actors forget a helper that failed them once; one that came back is introduced again."""
HELPER_CALLS_AT_A_TIME = 8
"""That a helper works on."""


class DecodeHelper:
    """Decodes for the actors of other nodes, on a node that has no GPU."""

    def __init__(self, config: DecodePoolConfig) -> None:
        self._pool = DecodePool(config)

    def decode(self, tasks: list[DecodeTask]) -> list[Decoded]:
        """See ``shared_decoder.decode_many``."""
        return decode_many(self._pool, tasks)

    @ray.method(concurrency_group="control")
    def is_ready(self) -> bool:
        """Answers while the helper lives."""
        return True


class RayHelpers:
    """One helper on each node that only decodes.

    Ray does not restart them: calls to an actor that waits for its node to come back would wait as well. A
    helper that does not answer is dropped and, if its node lives, started again.

    Args:
        config_for: decoding with a number of processes.
    """

    def __init__(self, config_for: Callable[[int], DecodePoolConfig]) -> None:
        self._config_for = config_for
        self._handles: dict[str, Any] = {}
        """By node."""
        self._ready: set[str] = set()
        self._pings: dict[Any, str] = {}
        self._next_introduction_s = 0.0

    @property
    def ready(self) -> dict[str, Any]:
        """Handles of those that answered, by node."""
        return {node_id: self._handles[node_id] for node_id in sorted(self._ready)}

    def update(self, wanted: Mapping[str, int], now_s: float) -> bool:
        """Have a helper on each of these nodes, with so many processes; True if actors should be told."""
        before = set(self._ready)
        for node_id in self._handles.keys() - wanted.keys():
            self._drop(node_id)
        for node_id in wanted.keys() - self._handles.keys():
            self._start(node_id, wanted[node_id])
        self._hear()
        is_due = bool(self._ready) and now_s >= self._next_introduction_s
        if is_due:
            self._next_introduction_s = now_s + INTRODUCE_EVERY_S
            for node_id in self._ready - set(self._pings.values()):
                self._ping(node_id)
        return is_due or before != self._ready

    def close(self) -> None:
        for handle in self._handles.values():
            with contextlib.suppress(RayError):
                ray.kill(handle)
        self._handles.clear()

    def _start(self, node_id: str, num_processes: int) -> None:
        remote = ray.remote(  # type: ignore[call-overload]  # Ray's types know options of tasks only
            num_cpus=num_processes,
            max_concurrency=HELPER_CALLS_AT_A_TIME,
            concurrency_groups={"control": 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )(DecodeHelper)
        self._handles[node_id] = remote.remote(self._config_for(num_processes))
        self._ping(node_id)

    def _ping(self, node_id: str) -> None:
        self._pings[self._handles[node_id].is_ready.remote()] = node_id

    def _hear(self) -> None:
        if not self._pings:
            return
        answered, _ = ray.wait(list(self._pings), num_returns=len(self._pings), timeout=0)
        for ref in answered:
            node_id = self._pings.pop(ref)
            try:
                ray.get(ref)
                self._ready.add(node_id)
            except RayError as error:
                logger.warning("decode helper on node %s is gone: %s", node_id[:8], one_line(error)[:120])
                self._drop(node_id)

    def _drop(self, node_id: str) -> None:
        self._handles.pop(node_id, None)
        self._ready.discard(node_id)
        self._pings = {ref: owner for ref, owner in self._pings.items() if owner != node_id}
