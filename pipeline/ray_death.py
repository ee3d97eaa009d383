"""Why an actor died, from the error that Ray gives for it."""

from collections.abc import Iterable, Mapping
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError

MAX_ERROR_CHARS = 500
_PREAMBLE = ("The actor died", "class_name:", "actor_id:", "pid:", "namespace:", "ip:")


def is_node_loss(error: RayActorError, node_id: str, nodes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether it died with its node. ``nodes``: what ``ray.nodes()`` says, the dead ones included."""
    if getattr(error, "preempted", False):
        return True
    if any(node["NodeID"] == node_id and not node["Alive"] for node in nodes):
        return True
    return isinstance(error, ActorDiedError) and "node has died" in str(error)


def cause_of_death(error: RayActorError) -> str:
    """One line: what Ray knows of the death of an actor, without its preamble."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return f"actor did not start: {lines[-1]}"[:MAX_ERROR_CHARS]
    known = [line for line in lines if not line.startswith(_PREAMBLE)]
    return f"actor died: {' '.join(known or lines)}"[:MAX_ERROR_CHARS]
