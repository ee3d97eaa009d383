"""How many actors a run has, what each claims of its node, and which nodes only decode.

The plan follows the nodes that are there, as far as the settings leave it open. Where an autoscaler starts
nodes for the workers that wait, the settings should say what a worker claims: the first node is chance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import NULL_TOKENIZER

HELPER_RESOURCE = "seed_decode"
CPUS_PER_ACTOR = 4
"""Cores of an actor without a GPU: the model and decoding share them."""

Resources = Mapping[str, float]
"""Of a node, by Ray's names (``CPU``, ``GPU``)."""


@dataclass(frozen=True)
class ActorShape:
    """What an actor claims of a node."""

    num_gpus: float
    num_cpus: float

    def fits(self, node: Resources) -> bool:
        """Whether the node could hold one, if nothing else ran there."""
        return node.get("CPU", 0.0) >= self.num_cpus and node.get("GPU", 0.0) >= self.num_gpus

    def decode_cores(self, node: Resources) -> int:
        """Cores of the node on which it decodes: the share that belongs to its GPU, else what it claims."""
        cores = node["CPU"] * self.num_gpus / node["GPU"] if self.num_gpus else self.num_cpus
        return max(1, math.floor(cores))

    def __str__(self) -> str:
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


def plan_actors(config: TokenizeConfig, nodes: Sequence[Resources]) -> tuple[ActorShape, int]:
    """Shape and number of the actors; some may have to wait for a place.

    Without ``num_actors`` as many as find a place, and one that waits where none does.

    Args:
        config: what was asked for.
        nodes: resources of each node that is alive.
    """
    num_gpus = _gpus_per_actor(config, nodes)
    # One core beside a GPU, so that every kind of GPU node will do; it decodes on more (`decode_cores`).
    num_cpus = config.cpus_per_actor or (1 if num_gpus else _cpus_per_actor(config, nodes))
    shape = ActorShape(num_gpus, num_cpus)
    if config.num_actors is not None:
        return shape, config.num_actors
    claim, of_node = (num_gpus, "GPU") if num_gpus else (num_cpus, "CPU")
    return shape, max(1, sum(math.floor(node.get(of_node, 0.0) / claim) for node in nodes))


def _gpus_per_actor(config: TokenizeConfig, nodes: Iterable[Resources]) -> float:
    if config.gpus_per_actor is not None:
        return config.gpus_per_actor
    return float(config.tokenizer != NULL_TOKENIZER and any(node.get("GPU") for node in nodes))


def _cpus_per_actor(config: TokenizeConfig, nodes: Iterable[Resources]) -> float:
    cpus = [node.get("CPU", 0.0) for node in nodes] or [0.0]
    share = min(CPUS_PER_ACTOR, max(1.0, max(cpus)))
    if config.num_actors and sum(cpus):  # none yet: a head without cores, before any other node has joined
        share = min(share, sum(cpus) / config.num_actors)
    return math.floor(share) if share >= 1 else round(share, 3)


def plan_helpers(config: TokenizeConfig, nodes: Mapping[str, Resources]) -> dict[str, int]:
    """Nodes that only decode, with the number of their decoding processes.

    Where actors have GPUs these are the nodes without one; elsewhere those that are started with the resource
    ``seed_decode``. One core of each is left to the system.

    Args:
        config: what was asked for.
        nodes: by node id, the resources of each node that is alive.
    """
    has_gpus = _gpus_per_actor(config, nodes.values()) > 0
    return {
        node_id: max(1, math.floor(node.get("CPU", 0.0)) - 1)
        for node_id, node in nodes.items()
        if node.get("CPU", 0.0) >= 1 and (node.get(HELPER_RESOURCE) or (has_gpus and not node.get("GPU")))
    }
