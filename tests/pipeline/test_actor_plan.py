"""Actors follow the cluster, one per GPU, unless the settings say what they claim and how many they are."""

import pytest

from pipeline.actor_plan import ActorShape, plan_actors, plan_helpers
from pipeline.tokenize_config import TokenizeConfig

GPU_NODE = {"GPU": 8.0, "CPU": 96.0}
CPU_NODE = {"CPU": 64.0}


def config(**settings: object) -> TokenizeConfig:
    return TokenizeConfig(**{"input": ("a.tar",), "output": "out"} | settings)


@pytest.mark.parametrize(
    ("settings", "nodes", "shape", "number"),
    [
        ({}, [GPU_NODE] * 4, ActorShape(1, 1), 32),
        ({}, [CPU_NODE, GPU_NODE, {"GPU": 8.0, "CPU": 64.0}], ActorShape(1, 1), 16),
        ({"gpus_per_actor": 0.5}, [GPU_NODE], ActorShape(0.5, 1), 16),
        ({"num_actors": 3, "cpus_per_actor": 8}, [GPU_NODE], ActorShape(1, 8), 3),
        ({"tokenizer": "null"}, [GPU_NODE], ActorShape(0, 4), 24),
        ({}, [{"CPU": 2.0}], ActorShape(0, 2), 1),
        ({}, [{"CPU": 2.0}, {"CPU": 2.0}], ActorShape(0, 2), 2),
        ({}, [CPU_NODE], ActorShape(0, 4), 16),
        ({"num_actors": 2}, [{"CPU": 2.0}], ActorShape(0, 1), 2),
        ({"num_actors": 4}, [{"CPU": 2.0}], ActorShape(0, 0.5), 4),
        ({}, [], ActorShape(0, 1), 1),
        ({"num_actors": 4}, [{"CPU": 0.0}], ActorShape(0, 1), 4),
        # Nothing is there yet: an autoscaler must see a worker that waits, of the kind that was asked for.
        ({}, [{"CPU": 0.0}], ActorShape(0, 1), 1),
        ({"gpus_per_actor": 1}, [{"CPU": 0.0}], ActorShape(1, 1), 1),
        ({"gpus_per_actor": 1, "num_actors": 32}, [CPU_NODE], ActorShape(1, 1), 32),
        ({"gpus_per_actor": 0}, [GPU_NODE], ActorShape(0, 4), 24),
        ({"cpus_per_actor": 4, "num_actors": 8}, [{"CPU": 2.0}], ActorShape(0, 4), 8),
    ],
)
def test_plan(settings: dict, nodes: list[dict[str, float]], shape: ActorShape, number: int) -> None:
    assert plan_actors(config(**settings), nodes) == (shape, number)


@pytest.mark.parametrize(
    ("shape", "node", "cores"),
    [
        (ActorShape(1, 1), GPU_NODE, 12),
        (ActorShape(0.5, 1), GPU_NODE, 6),
        (ActorShape(1, 1), {"GPU": 8.0, "CPU": 4.0}, 1),
        (ActorShape(0, 4), GPU_NODE, 4),
        (ActorShape(0, 0.5), CPU_NODE, 1),
    ],
)
def test_an_actor_decodes_on_its_share_of_the_node_where_it_stands(
    shape: ActorShape, node: dict[str, float], cores: int
) -> None:
    assert shape.decode_cores(node) == cores


@pytest.mark.parametrize(
    ("settings", "nodes", "helpers"),
    [
        ({}, {"a": CPU_NODE, "b": GPU_NODE}, {"a": 63}),
        ({}, {"a": CPU_NODE}, {}),
        ({"gpus_per_actor": 1}, {"a": CPU_NODE}, {"a": 63}),
        ({"gpus_per_actor": 0}, {"a": CPU_NODE, "b": GPU_NODE}, {}),
        ({"tokenizer": "null"}, {"a": CPU_NODE, "b": GPU_NODE}, {}),
        ({}, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0, "seed_decode": 1.0}}, {"b": 1}),
        ({}, {"head": {"object_store_memory": 1.0}, "b": GPU_NODE}, {}),
    ],
)
def test_nodes_without_gpu_help_those_that_have_one(
    settings: dict, nodes: dict[str, dict[str, float]], helpers: dict[str, int]
) -> None:
    assert plan_helpers(config(**settings), nodes) == helpers
