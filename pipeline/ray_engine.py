"""Shards on Ray actors.

One actor per GPU (or per few CPUs) owns the shards it has in hand from reading to commit; decoding processes
run beside it. The driver holds one small call per shard in flight, never the list of all. Actors are not
restarted by Ray but replaced here, so that a shard which kills its actor is told from a node that went away,
and so that the number of actors follows the cluster.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from pipeline.barren_actors import BarrenActors
from pipeline.error_text import one_line
from pipeline.ray_cluster import HeadWatch, connected
from pipeline.ray_crew import CrewMember, RayCrew
from pipeline.ray_death import MAX_ERROR_CHARS, cause_of_death, is_node_loss
from pipeline.shard_driver import (
    PoolError,
    ShardDone,
    ShardFailed,
    WorkerEvent,
    WorkerJoined,
    WorkerLost,
)
from pipeline.shard_schedule import LossCause
from pipeline.shard_task import ShardTask
from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import WorkerSetup

logger = logging.getLogger(__name__)

STATUS_EVERY_S = 2.0
RESIZE_EVERY_S = 5.0
PROBE_EVERY_S = 1.0
MAX_CUT_OFF_S = 90.0
"""Time in which Ray must find out whether an actor that does not answer is dead."""
STOP_GRACE_S = 10.0


class RayWorkers:
    """A ``WorkerPool`` of actors.

    Args:
        config: number and size of the actors.
        setup_for: makes the setup of an actor for a device.
        is_head_there: see ``HeadWatch``.
    """

    def __init__(
        self,
        config: TokenizeConfig,
        setup_for: Callable[[str], WorkerSetup],
        is_head_there: Callable[[], bool] = lambda: True,
    ) -> None:
        self._config = config
        self._is_head_there = is_head_there
        self._crew = RayCrew(config, setup_for)
        self._actors = self._crew.actors
        self._calls: dict[Any, tuple[str, str]] = {}
        """Ref -> worker, and the shard's name, or behind a colon what it was asked (``:status``)."""
        self._barren = BarrenActors()
        self._next_status_s = 0.0
        self._next_resize_s = 0.0

    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        self._resize(num_wanted)
        self._ask_for_status()
        self._probe()
        events: list[WorkerEvent] = []
        if not self._calls:
            time.sleep(timeout_s)
            return events
        ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for ref in ready:
            if ref in self._calls:  # an actor that died takes its other calls with it
                events += self._hear(ref)
        return events

    def assign(self, worker_id: str, task: ShardTask) -> None:
        ref = self._actors[worker_id].handle.encode.remote(worker_id, task)
        self._calls[ref] = (worker_id, task.name)

    def end_worker(self, worker_id: str) -> None:
        shards = self._in_hand(worker_id)
        actor = self._end(worker_id)
        if not actor.has_finished:
            self._barren.add(LossCause.STALLED, True, shards, "they stall (--stall-timeout)")

    def _end(self, worker_id: str) -> CrewMember:
        actor = self._forget(worker_id)
        ray.kill(actor.handle)
        return actor

    def close(self) -> None:
        """Ask the actors to drop what they have in hand, which removes its files; then end them."""
        running = [ref for ref, (_, call) in self._calls.items() if not call.startswith(":")]
        with contextlib.suppress(RayError):
            for actor in self._actors.values():
                if actor.is_ready:
                    actor.handle.stop.remote()
            if running:
                ray.wait(running, num_returns=len(running), timeout=STOP_GRACE_S)
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor.handle)
        self._crew.close()
        self._calls.clear()

    def _resize(self, num_wanted: int) -> None:
        """Have as many actors as the cluster holds and the work needs."""
        now = time.monotonic()
        if now < self._next_resize_s:
            return
        self._next_resize_s = now + RESIZE_EVERY_S
        if not self._is_head_there():
            return
        started, surplus = self._crew.follow_cluster(num_wanted)
        for worker_id in surplus:
            self._end(worker_id)
        for worker_id in started:
            self._calls[self._actors[worker_id].handle.node_id.remote()] = (worker_id, ":place")

    def _load(self, worker_id: str, node_id: str) -> None:
        actor = self._actors[worker_id]
        self._crew.placed(actor, node_id)
        self._calls[actor.handle.load.remote()] = (worker_id, ":load")

    def _ask_for_status(self) -> None:
        now = time.monotonic()
        if now < self._next_status_s:
            return
        self._next_status_s = now + STATUS_EVERY_S
        for worker_id, actor in self._actors.items():
            if actor.is_ready and not actor.is_asked and actor.cut_off_s is None:
                actor.is_asked = True
                self._calls[actor.handle.status.remote(worker_id)] = (worker_id, ":status")

    def _hear(self, ref: Any) -> list[WorkerEvent]:
        """What one call brought."""
        worker_id, call = self._calls.pop(ref)
        actor = self._actors[worker_id]
        try:
            answer = ray.get(ref)
        except ActorUnavailableError:
            return self._cut_off(worker_id, call)
        except RayActorError as error:
            if not self._is_head_there():  # which knows why
                return self._cut_off(worker_id, call)
            return self._lost(worker_id, call, error)
        except RayError as error:
            if call in (":place", ":load") and isinstance(error, RayTaskError):
                return self._not_loaded(worker_id, error)
            if call.startswith(":"):
                return self._own_call_failed(worker_id, call, error)
            return [ShardFailed(worker_id, call, one_line(error))]
        if call == ":probe":
            return self._reached_again(worker_id, answer)
        if call == ":place":
            self._load(worker_id, answer)
            return []
        if call == ":load":
            return self._joined(worker_id)
        if call == ":status":
            actor.is_asked = False
            return [answer]
        if isinstance(answer, WorkerLost):
            self._end(worker_id)
            if not actor.has_finished:
                self._barren.add(answer.loss, True, set(), answer.error)
        elif isinstance(answer, ShardDone):
            actor.has_finished = True
            self._barren.shard_finished()
        return [] if answer is None else [answer]

    def _joined(self, worker_id: str) -> list[WorkerEvent]:
        actor = self._actors[worker_id]
        actor.is_ready = True
        self._crew.introduce_helpers(actor)
        return [WorkerJoined(worker_id, self._config.shards_in_flight)]

    def _not_loaded(self, worker_id: str, error: RayTaskError) -> list[WorkerEvent]:
        """The model could not be loaded there; the others go on, and if there are none this counts."""
        actor = self._actors[worker_id]
        actor.failed_s = time.monotonic()
        self._next_resize_s = 0.0
        line = f"on {_node_name(actor.node_id)}: {one_line(error.cause)[:MAX_ERROR_CHARS]}"
        logger.warning("worker=%s did not start %s", worker_id, line)
        if not self._crew.has_others(actor):
            self._barren.add(LossCause.CRASHED, False, set(), line)
        return []

    def _own_call_failed(self, worker_id: str, call: str, error: RayError) -> list[WorkerEvent]:
        """A call about no shard failed, and not because the actor died: it is made again."""
        logger.warning("worker=%s %s failed: %s", worker_id, call[1:], one_line(error)[:MAX_ERROR_CHARS])
        if call == ":status":
            self._actors[worker_id].is_asked = False
            return []
        return self._cut_off(worker_id, call)

    def _cut_off(self, worker_id: str, call: str) -> list[WorkerEvent]:
        """A call broke off: the actor or its node died, or only the connection. Ray knows a little later."""
        actor = self._actors[worker_id]
        now = time.monotonic()
        actor.is_asked = False
        actor.cut_off_s = actor.cut_off_s or now
        actor.next_probe_s = now + PROBE_EVERY_S
        if not call.startswith(":"):
            actor.interrupted.add(call)
        if now - actor.cut_off_s < MAX_CUT_OFF_S:
            return []
        self._end(worker_id)
        line = f"not reached for {MAX_CUT_OFF_S:g} s"
        if not actor.is_ready:  # nobody knows this worker yet
            logger.warning("worker=%s did not start: %s", worker_id, line)
            return []
        return [WorkerLost(worker_id, LossCause.NODE_LOST, line)]

    def _probe(self) -> None:
        now = time.monotonic()
        for worker_id, actor in self._actors.items():
            if actor.cut_off_s is not None and now >= actor.next_probe_s:
                actor.next_probe_s = math.inf
                self._calls[actor.handle.node_id.remote()] = (worker_id, ":probe")

    def _reached_again(self, worker_id: str, node_id: str) -> list[WorkerEvent]:
        """It was only the connection; an actor that still works on what we gave up must not go on."""
        actor = self._actors[worker_id]
        if not actor.interrupted:
            actor.cut_off_s = None
            if not actor.is_ready:
                self._load(worker_id, node_id)
            return []
        self._end(worker_id)
        return [WorkerLost(worker_id, LossCause.NODE_LOST, "the connection to the actor was lost")]

    def _lost(self, worker_id: str, call: str, error: RayActorError) -> list[WorkerEvent]:
        """An actor died: tell why, and see to it that this does not go on for ever."""
        shards = self._in_hand(worker_id) | ({call} if not call.startswith(":") else set())
        actor = self._forget(worker_id)
        self._next_resize_s = 0.0
        loss = LossCause.NODE_LOST if is_node_loss(error, actor.node_id, ray.nodes()) else LossCause.CRASHED
        line = cause_of_death(error)
        if not actor.has_finished:
            self._barren.add(loss, actor.is_ready, shards, line)
        if not actor.is_ready:
            logger.warning("worker=%s did not start: %s", worker_id, line)
            return []
        return [WorkerLost(worker_id, loss, line)]

    def _in_hand(self, worker_id: str) -> set[str]:
        calls = {call for owner, call in self._calls.values() if owner == worker_id}
        shards = {call for call in calls if not call.startswith(":")}
        return shards | self._actors[worker_id].interrupted

    def _forget(self, worker_id: str) -> CrewMember:
        for ref in [ref for ref, (owner, _) in self._calls.items() if owner == worker_id]:
            del self._calls[ref]
        return self._actors.pop(worker_id)


def _node_name(node_id: str) -> str:
    """Of a node, as Ray's dashboard and `ray list nodes` show it."""
    hosts = {node["NodeID"]: node.get("NodeManagerHostname", "") for node in ray.nodes()}
    return f"node {node_id[:12]} ({hosts.get(node_id, '')})"


@contextmanager
def open_ray_workers(config: TokenizeConfig, setup_for: Callable[[str], WorkerSetup]) -> Iterator[RayWorkers]:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine; the actors end with the block."""
    # Actors that claim no GPU keep the devices that they see.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with connected():
        watch = HeadWatch(ray.get_runtime_context().gcs_address)
        pool = RayWorkers(config, setup_for, watch.is_there)
        try:
            yield pool
        finally:
            with contextlib.suppress(PoolError):
                if watch.is_there():  # else there is nobody to end them
                    pool.close()
