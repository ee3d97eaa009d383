"""Tells workers that cannot work from shards that break their workers: the first end the run."""

from pipeline.shard_driver import PoolError
from pipeline.shard_schedule import LossCause

MAX_BARREN_ACTORS = 3
"""Actors in a row that may not start, or whose model or decoding may fail, before any finishes a shard."""
MAX_BARREN_SHARDS = 12
"""Different shards whose actors may die or stall at work before any finishes a shard. More than the actors
above: a few bad shards at the end of a run look the same, and are set aside one by one."""


class BarrenActors:
    """Counts actors that ended without having finished a shard, since one last did."""

    def __init__(self) -> None:
        self._num_actors = 0
        self._shards: set[str] = set()

    def shard_finished(self) -> None:
        self._num_actors = 0
        self._shards.clear()

    def add(self, loss: LossCause, has_started: bool, shards: set[str], line: str) -> None:
        """Count one.

        Args:
            loss: why it ended; a lost node does not count.
            has_started: whether it had loaded the model.
            shards: what it had in hand.
            line: what is known of the cause.

        Raises:
            PoolError: if this is what becomes of all of them.
        """
        if loss is LossCause.NODE_LOST:
            return
        if has_started and loss not in (LossCause.MODEL_FAILED, LossCause.DECODERS_FAILED):
            self._shards |= shards
            if len(self._shards) >= MAX_BARREN_SHARDS:
                raise PoolError(f"workers end before they finish a shard, whatever the shard: {line}")
            return
        self._num_actors += 1
        if self._num_actors < MAX_BARREN_ACTORS:
            return
        if loss is LossCause.DECODERS_FAILED:
            raise PoolError(f"decoding fails on every worker: {line}")
        if has_started:
            remedy = "if memory is short, choose a smaller --batch-size"
            raise PoolError(f"the model fails on every worker: {line}; {remedy}")
        raise PoolError(f"workers do not start: {line}")
