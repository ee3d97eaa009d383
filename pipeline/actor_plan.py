"""How many actors a cluster holds, and what each claims of its node."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import NULL_TOKENIZER

HELPER_RESOURCE = "seed_decode"
CPUS_PER_ACTOR = 4
"""Cores of an actor without a GPU: the model and decoding share them."""


@dataclass(frozen=True)
class ActorShape:
    """What an actor claims of a node."""

    num_gpus: float
    num_cpus: float
    decode_cores: int


def plan_actors(config: TokenizeConfig, nodes: Sequence[Mapping[str, float]]) -> tuple[ActorShape, int]:
    """Shape and number of the actors.

    Args:
        config: what was asked for.
        nodes: resources of each node that is alive, by Ray's names (``CPU``, ``GPU``).
    """
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if num_gpus and config.tokenizer != NULL_TOKENIZER:
        # The poorest GPU node decides: an actor must fit on every one of them.
        cores_per_gpu = min(node.get("CPU", 1.0) / node["GPU"] for node in nodes if node.get("GPU"))
        cores = max(1, math.floor(cores_per_gpu * config.gpus_per_actor))
        places = sum(math.floor(node.get("GPU", 0.0) / config.gpus_per_actor) for node in nodes)
        shape = ActorShape(config.gpus_per_actor, cores, cores)
        return shape, places if config.num_actors is None else config.num_actors
    cpus = [node.get("CPU", 0.0) for node in nodes] or [1.0]
    share = min(CPUS_PER_ACTOR, max(1.0, max(cpus)))
    if config.num_actors and sum(cpus):  # none yet: a head without cores, before any other node has joined
        share = min(share, sum(cpus) / config.num_actors)
    share = math.floor(share) if share >= 1 else round(share, 3)
    places = sum(math.floor(number / share) for number in cpus)
    shape = ActorShape(0, share, max(1, math.floor(share)))
    return shape, places if config.num_actors is None else config.num_actors


def plan_helpers(config: TokenizeConfig, nodes: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Nodes that only decode, with the number of their decoding processes.

    In a cluster with GPUs these are the nodes without one; elsewhere those that are started with the resource
    ``seed_decode``. One core of each is left to the system.

    Args:
        config: what was asked for.
        nodes: by node id, the resources of each node that is alive.
    """
    has_gpus = any(node.get("GPU") for node in nodes.values()) and config.tokenizer != NULL_TOKENIZER
    return {
        node_id: max(1, math.floor(node.get("CPU", 0.0)) - 1)
        for node_id, node in nodes.items()
        if node.get("CPU", 0.0) >= 1 and (node.get(HELPER_RESOURCE) or (has_gpus and not node.get("GPU")))
    }
