"""The actors of a run: as many as were asked for, or as find a place; their number follows the cluster.

Actors without a place are left to wait: they are the demand for which Ray's autoscaler starts nodes. They are
withdrawn when the rest of the work does not need them, so that no node starts for nothing.

An actor that cannot load its model, on a node without the weights say, stays where it is for a while: it
keeps the next one from the same place, and the others go on.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.actor_plan import ActorShape, Resources, plan_actors, plan_helpers
from pipeline.ray_actor import EncodeActor
from pipeline.ray_helpers import RayHelpers
from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import NULL_TOKENIZER, WorkerSetup, decode_pool_config

logger = logging.getLogger(__name__)

COMPLAIN_EVERY_S = 60.0
RETRY_PLACE_S = 300.0
"""After which an actor is tried again where one could not load."""


@dataclass
class CrewMember:
    """One actor, as the driver knows it."""

    handle: Any
    shape: ActorShape
    node_id: str = ""
    """Empty while it waits for a place."""
    is_ready: bool = False
    """The model is loaded."""
    failed_s: float | None = None
    """When loading failed; since then it only keeps its place from others."""
    is_asked: bool = False
    """A status call is under way."""
    interrupted: set[str] = field(default_factory=set)
    """Shards whose calls were cut off; whether the actor lives is not known yet."""
    has_finished: bool = False
    """A shard."""
    cut_off_s: float | None = None
    next_probe_s: float = 0.0


class RayCrew:
    """Actors by worker id, and the helpers that decode for them.

    Args:
        config: number and size of the actors.
        setup_for: makes the setup of an actor for a device.
    """

    def __init__(self, config: TokenizeConfig, setup_for: Callable[[str], WorkerSetup]) -> None:
        self.actors: dict[str, CrewMember] = {}
        self._config = config
        self._setup_for = setup_for
        self._helpers = RayHelpers(lambda cores: decode_pool_config(setup_for("cpu"), cores))
        self._num_born = 0
        self._next_complaint_s = 0.0
        self._patient_until_s = time.monotonic() + COMPLAIN_EVERY_S

    def follow_cluster(self, num_wanted: int) -> tuple[list[str], list[str]]:
        """Start what is missing.

        Args:
            num_wanted: actors for which there is work.

        Returns:
            Ids of the actors that were started; and of those that do not work and are to be ended.
        """
        now = time.monotonic()
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        helpers = plan_helpers(self._config, nodes)
        if self._helpers.update(helpers, now):
            for actor in self.actors.values():
                self.introduce_helpers(actor)
        workers = [resources for node_id, resources in nodes.items() if node_id not in helpers]
        shape, num_places = plan_actors(self._config, workers)
        failed = [name for name, actor in self.actors.items() if actor.failed_s is not None]
        expired = [name for name in failed if self._is_expired(self.actors[name], nodes, now)]
        if self._config.num_actors is None:  # those at work without a GPU take no place beside one
            num_places += sum(
                actor.is_ready and actor.shape.num_gpus != shape.num_gpus for actor in self.actors.values()
            )
            num_places -= len(failed) - len(expired)
        num_actors = min(num_places, num_wanted)
        surplus = self._surplus(shape, num_actors)
        num_missing = num_actors - (len(self.actors) - len(failed) - len(surplus))
        started = [self._start(shape) for _ in range(num_missing)]
        self._complain(shape, workers, now)
        return started, surplus + expired

    def placed(self, actor: CrewMember, node_id: str) -> None:
        """It has found a place, and begins to load."""
        actor.node_id = node_id
        if actor.shape.num_gpus:  # from now on, also if all nodes with a GPU are lost: others will come
            self._config = dataclasses.replace(self._config, gpus_per_actor=actor.shape.num_gpus)

    def has_others(self, actor: CrewMember) -> bool:
        """Whether actors beside this one work, or still load."""
        return any(
            other.node_id and other.failed_s is None and other is not actor for other in self.actors.values()
        )

    def introduce_helpers(self, actor: CrewMember) -> None:
        if actor.is_ready:
            actor.handle.set_helpers.remote(self._helpers.ready)

    def close(self) -> None:
        self._helpers.close()
        self.actors.clear()

    def _is_expired(self, failed: CrewMember, nodes: dict[str, Resources], now: float) -> bool:
        """Whether an actor that could not load need not keep its place any longer."""
        assert failed.failed_s is not None
        is_lost = bool(failed.node_id) and failed.node_id not in nodes
        return is_lost or now - failed.failed_s > RETRY_PLACE_S or not self.has_others(failed)

    def _surplus(self, shape: ActorShape, num_wanted: int) -> list[str]:
        """Actors that have not started yet and are too many, the youngest first, or are of another shape."""
        actors = {name: actor for name, actor in self.actors.items() if actor.failed_s is None}
        waiting = [name for name in reversed(actors) if not actors[name].is_ready]
        misfits = [name for name in waiting if actors[name].shape.num_gpus != shape.num_gpus]
        others = [name for name in waiting if name not in misfits]
        return misfits + others[: max(0, len(actors) - len(misfits) - num_wanted)]

    def _start(self, shape: ActorShape) -> str:
        self._num_born += 1
        worker_id = f"actor-{self._num_born}"
        remote = ray.remote(  # type: ignore[call-overload]  # Ray's types know options of tasks only
            num_gpus=shape.num_gpus,
            num_cpus=shape.num_cpus,
            max_restarts=0,
            max_concurrency=self._config.shards_in_flight,
            concurrency_groups={"control": 2},
        )(EncodeActor)
        handle = remote.remote(self._setup_for("cuda" if shape.num_gpus else "cpu"), shape)
        self.actors[worker_id] = CrewMember(handle, shape)
        return worker_id

    def _complain(self, shape: ActorShape, nodes: list[Resources], now: float) -> None:
        """Say what the run waits for while no actor works: at once where it waits for a node."""
        if now < self._next_complaint_s or any(actor.is_ready for actor in self.actors.values()):
            return
        if not any(shape.fits(node) for node in nodes):
            self._next_complaint_s = now + COMPLAIN_EVERY_S
            logger.warning(
                "%d workers wait for a node: each needs %s, and no node has that much; the run goes on"
                " when one joins (`ray start --address=...`, or the autoscaler: `ray status`)%s",
                len(self.actors), shape, self._hint(shape),
            )  # fmt: skip
        elif now > self._patient_until_s:
            self._next_complaint_s = now + COMPLAIN_EVERY_S
            logger.warning(
                "workers are still starting, or wait for room: each needs %s, free are %s",
                shape, _readable(ray.available_resources()),
            )  # fmt: skip

    def _hint(self, shape: ActorShape) -> str:
        if shape.num_gpus:
            return "; to do without GPUs give --gpus-per-actor 0"
        if self._config.gpus_per_actor is None and self._config.tokenizer != NULL_TOKENIZER:
            return "; if nodes with GPUs are to come, give --gpus-per-actor 1"
        return "; to claim less give --cpus-per-actor"


def _readable(resources: Resources) -> str:
    return ", ".join(f"{name} {resources.get(name, 0.0):g}" for name in ("CPU", "GPU"))
