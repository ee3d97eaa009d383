"""Shards on Ray actors. The only file of the pipeline that imports ray.

One actor per GPU (or per few CPUs) owns the shards it has in hand from reading to commit; decoding processes
run beside it. The driver holds one small call per shard in flight, never the list of all. Actors are not
restarted by Ray but replaced here, so that a shard which kills its actor is told from a node that went away,
and so that the number of actors follows the cluster.
"""

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.util.metrics import Counter, Gauge

from pipeline.batching_encoder import EncoderError
from pipeline.encode_shard import ShardCancelledError
from pipeline.local_workers import ShardMoves, fatal_message, is_fatal, one_line, worker_status
from pipeline.shard_driver import (
    PoolError,
    ShardDone,
    ShardFailed,
    WorkerEvent,
    WorkerJoined,
    WorkerLost,
    WorkerStatus,
)
from pipeline.shard_schedule import Loss, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport, ShardTask
from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import NULL_TOKENIZER, WorkerSetup, open_tools

logger = logging.getLogger(__name__)

STATUS_EVERY_S = 2.0
RESIZE_EVERY_S = 5.0
COMPLAIN_EVERY_S = 60.0
STOP_GRACE_S = 10.0
CPUS_PER_ACTOR = 4
"""Cores of an actor without a GPU: the model and decoding share them."""
MAX_BARREN_ACTORS = 3
"""Actors in a row that may die before any has finished a shard or even started."""
MAX_ERROR_CHARS = 500
ACTOR_ERROR_PREAMBLE = ("The actor died", "class_name:", "actor_id:", "pid:", "namespace:", "ip:")
LOCAL_OBJECT_STORE_BYTES = 100 << 20
"""Only shard names and reports go through Ray."""


class EncodeActor:
    """Owns shards from reading to commit, on one machine."""

    def __init__(self, setup: WorkerSetup) -> None:
        logging.basicConfig(level=logging.WARNING)
        self._stack = ExitStack()
        self._tools = self._stack.enter_context(open_tools(setup))
        self._moves = ShardMoves()
        self._node_id = ray.get_runtime_context().get_node_id()

    def encode(self, worker_id: str, task: ShardTask) -> WorkerEvent | None:
        """Tokenize one shard; None if the actor was told to stop. Errors come back as values."""
        try:
            return ShardDone(worker_id, self._tools.encode(task, self._moves.start(task.name)))
        except ShardCancelledError:
            return None
        except EncoderError as error:
            return WorkerLost(worker_id, Loss.CRASHED, one_line(error))
        except Exception as error:
            fatal = is_fatal(error)
            message = fatal_message(error, self._tools.folder.url) if fatal else one_line(error)
            return ShardFailed(worker_id, task.name, f"{message} (on {socket.gethostname()})", fatal)
        finally:
            self._moves.end(task.name)

    @ray.method(concurrency_group="control")
    def node_id(self) -> str:
        """Answers once the model is loaded."""
        return self._node_id

    @ray.method(concurrency_group="control")
    def status(self, worker_id: str) -> WorkerStatus:
        return worker_status(worker_id, self._tools, self._moves)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Give up the shards in hand at their next sample."""
        self._tools.is_cancelled.set()


@dataclass(frozen=True)
class ActorShape:
    """What an actor claims of a node."""

    num_gpus: float
    num_cpus: float
    decode_cores: int


@dataclass
class _Actor:
    handle: Any
    born_s: float
    node_id: str = ""
    """Empty until the model is loaded."""
    is_asked: bool = False
    """A status call is under way."""
    has_finished_a_shard: bool = False


class RayWorkers:
    """A ``WorkerPool`` of actors; their number follows the cluster.

    Args:
        config: number and size of the actors.
        setup_for: makes the setup of an actor for a device and a number of cores.
    """

    def __init__(self, config: TokenizeConfig, setup_for: Callable[[str, int], WorkerSetup]) -> None:
        self._config = config
        self._setup_for = setup_for
        self._actors: dict[str, _Actor] = {}
        self._calls: dict[Any, tuple[str, str]] = {}
        """Ref -> worker, and the shard's name or ``status`` or ``join`` behind a colon."""
        self._num_born = 0
        self._num_barren = 0
        self._next_status_s = 0.0
        self._next_resize_s = 0.0
        self._next_complaint_s = time.monotonic() + COMPLAIN_EVERY_S

    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        self._resize(num_wanted)
        self._ask_for_status()
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
        actor = self._forget(worker_id)
        ray.kill(actor.handle)

    def close(self) -> None:
        """Ask the actors to drop what they have in hand, which removes their temporary files; then end them."""
        running = [ref for ref, (_, call) in self._calls.items() if not call.startswith(":")]
        with contextlib.suppress(RayError):
            for actor in self._actors.values():
                if actor.node_id:
                    actor.handle.stop.remote()
            if running:
                ray.wait(running, num_returns=len(running), timeout=STOP_GRACE_S)
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor.handle)
        self._actors.clear()
        self._calls.clear()

    def _resize(self, num_wanted: int) -> None:
        """Have as many actors as the cluster holds and the work needs."""
        now = time.monotonic()
        if now < self._next_resize_s:
            return
        self._next_resize_s = now + RESIZE_EVERY_S
        shape, num_places = plan_actors(self._config, ray.nodes())
        wanted = min(num_places, num_wanted)
        for _ in range(wanted - len(self._actors)):
            self._start_actor(shape, now)
        if not any(actor.node_id for actor in self._actors.values()) and now > self._next_complaint_s:
            self._next_complaint_s = now + COMPLAIN_EVERY_S
            logger.warning(
                "no worker is ready yet; each needs %g CPUs and %g GPUs, free are %s",
                shape.num_cpus, shape.num_gpus, _readable(ray.available_resources()),
            )  # fmt: skip

    def _start_actor(self, shape: ActorShape, now: float) -> None:
        self._num_born += 1
        worker_id = f"actor-{self._num_born}"
        setup = self._setup_for("cuda" if shape.num_gpus else "cpu", shape.decode_cores)
        remote = ray.remote(
            num_gpus=shape.num_gpus,
            num_cpus=shape.num_cpus,
            max_restarts=0,
            max_concurrency=self._config.shards_in_flight,
            concurrency_groups={"control": 2},
        )(EncodeActor)
        handle = remote.remote(setup)
        self._actors[worker_id] = _Actor(handle, now)
        self._calls[handle.node_id.remote()] = (worker_id, ":join")

    def _ask_for_status(self) -> None:
        now = time.monotonic()
        if now < self._next_status_s:
            return
        self._next_status_s = now + STATUS_EVERY_S
        for worker_id, actor in self._actors.items():
            if actor.node_id and not actor.is_asked:
                actor.is_asked = True
                self._calls[actor.handle.status.remote(worker_id)] = (worker_id, ":status")

    def _hear(self, ref: Any) -> list[WorkerEvent]:
        """What one call brought."""
        worker_id, call = self._calls.pop(ref)
        actor = self._actors[worker_id]
        try:
            answer = ray.get(ref)
        except RayActorError as error:
            return self._lost(worker_id, error)
        except RayError as error:
            return [] if call.startswith(":") else [ShardFailed(worker_id, call, one_line(error))]
        if call == ":join":
            actor.node_id = answer
            return [WorkerJoined(worker_id, self._config.shards_in_flight)]
        if call == ":status":
            actor.is_asked = False
            return [answer]
        if isinstance(answer, WorkerLost):
            self.end_worker(worker_id)
        elif isinstance(answer, ShardDone):
            self._num_barren = 0
        return [] if answer is None else [answer]

    def _lost(self, worker_id: str, error: RayActorError) -> list[WorkerEvent]:
        """An actor died: tell why, and see to it that this does not go on for ever."""
        actor = self._forget(worker_id)
        self._next_resize_s = 0.0
        loss = Loss.NODE_LOST if _is_node_loss(error, actor.node_id) else Loss.CRASHED
        line = _cause(error)
        if loss is Loss.CRASHED:
            self._num_barren += 1
        if not actor.node_id and loss is Loss.CRASHED and self._num_barren >= MAX_BARREN_ACTORS:
            raise PoolError(f"workers do not start: {line}")
        if not actor.node_id:
            logger.warning("worker=%s did not start: %s", worker_id, line)
            return []
        return [WorkerLost(worker_id, loss, line)]

    def _forget(self, worker_id: str) -> _Actor:
        for ref in [ref for ref, (owner, _) in self._calls.items() if owner == worker_id]:
            del self._calls[ref]
        return self._actors.pop(worker_id)


def plan_actors(config: TokenizeConfig, nodes: list[dict[str, Any]]) -> tuple[ActorShape, int]:
    """Shape and number of the actors for the nodes of a cluster, as ``ray.nodes()`` lists them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    num_gpus = sum(resources.get("GPU", 0.0) for resources in alive)
    if num_gpus and config.tokenizer != NULL_TOKENIZER:
        # The poorest GPU node decides: an actor must fit on every one of them.
        cores_per_gpu = min(
            resources.get("CPU", 1.0) / resources["GPU"] for resources in alive if resources.get("GPU")
        )
        cores = max(1, math.floor(cores_per_gpu * config.gpus_per_actor))
        places = sum(math.floor(resources.get("GPU", 0.0) / config.gpus_per_actor) for resources in alive)
        shape = ActorShape(config.gpus_per_actor, cores, cores)
        return shape, places if config.num_actors is None else config.num_actors
    cpus = [resources.get("CPU", 0.0) for resources in alive] or [1.0]
    share = min(CPUS_PER_ACTOR, max(1.0, max(cpus)))
    if config.num_actors:
        share = min(share, sum(cpus) / config.num_actors)
    share = math.floor(share) if share >= 1 else round(share, 3)
    places = sum(math.floor(number / share) for number in cpus)
    shape = ActorShape(0, share, max(1, math.floor(share)))
    return shape, places if config.num_actors is None else config.num_actors


def _is_node_loss(error: RayActorError, node_id: str) -> bool:
    if getattr(error, "preempted", False):
        return True
    if any(node["NodeID"] == node_id and not node["Alive"] for node in ray.nodes()):
        return True
    return isinstance(error, ActorDiedError) and "node has died" in str(error)


def _cause(error: RayActorError) -> str:
    """One line: what Ray knows of the death of an actor, without its preamble."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return f"actor did not start: {lines[-1]}"[:MAX_ERROR_CHARS]
    known = [line for line in lines if not line.startswith(ACTOR_ERROR_PREAMBLE)]
    return f"actor died: {' '.join(known or lines)}"[:MAX_ERROR_CHARS]


def _readable(resources: dict[str, float]) -> str:
    wanted = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return ", ".join(f"{name} {number:g}" for name, number in wanted.items())


@contextmanager
def open_ray_workers(
    config: TokenizeConfig, setup_for: Callable[[str, int], WorkerSetup]
) -> Iterator[RayWorkers]:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine; the actors end with the block."""
    was_connected = ray.is_initialized()
    if not was_connected:
        connect()
    pool = RayWorkers(config, setup_for)
    try:
        yield pool
    finally:
        pool.close()
        if not was_connected:
            ray.shutdown()


def connect() -> None:
    """``ray.init`` for the cluster that RAY_ADDRESS names, or for a quiet private one.

    Raises:
        PoolError: if that cluster does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RayError, ValueError) as error:
            raise PoolError(
                f"the Ray cluster at {address} (RAY_ADDRESS) cannot be reached: {error}"
            ) from error
        return
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )


class RayMetrics:
    """The run as Ray metrics, for Prometheus; a ``RunListener``."""

    def __init__(self) -> None:
        self._images = Counter("seed_shards_images", "Images that were written.")
        self._samples = Counter("seed_shards_samples_quarantined", "Samples refused.", tag_keys=("reason",))
        self._shards = Counter(
            "seed_shards_shards", "Source shards, by what became of them.", tag_keys=("state",)
        )
        self._workers = Gauge("seed_shards_workers", "Workers that are ready.")
        self._wait = Gauge(
            "seed_shards_model_wait_fraction", "Share of model time without data.", tag_keys=("worker",)
        )
        self._remaining = Gauge("seed_shards_shards_remaining", "Source shards not finished.")
        self._num_workers = 0

    def shard_done(self, report: ShardReport) -> None:
        self._shards.inc(1, {"state": "done"})
        if report.counts.images_written:
            self._images.inc(report.counts.images_written)
        for reason, number in report.counts.samples_quarantined.items():
            self._samples.inc(number, {"reason": reason})

    def shard_retried(self, name: str, error: str) -> None:
        self._shards.inc(1, {"state": "retried"})

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self._shards.inc(1, {"state": "failed"})

    def worker_joined(self, worker_id: str) -> None:
        self._num_workers += 1

    def worker_lost(self, worker_id: str, loss: Loss, error: str) -> None:
        self._num_workers -= 1

    def worker_status(self, status: WorkerStatus) -> None:
        whole_s = status.busy_s + status.starved_s
        if whole_s:
            self._wait.set(status.starved_s / whole_s, {"worker": status.worker_id})

    def tick(self, schedule: ShardSchedule) -> None:
        self._workers.set(self._num_workers)
        self._remaining.set(schedule.num_unassigned + schedule.num_running)
