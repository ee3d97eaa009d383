"""The actor that owns shards from reading to commit, on one machine."""

import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray

from pipeline.actor_plan import ActorShape
from pipeline.decode import DecodeTask
from pipeline.fault_points import reach
from pipeline.shard_driver import WorkerEvent, WorkerStatus
from pipeline.shard_task import ShardTask
from pipeline.shard_worker import ShardWorker
from pipeline.shared_decoder import Decoded
from pipeline.worker_tools import WorkerSetup, open_tools

HELPER_TIMEOUT_S = 120.0
"""For a group; then its pictures are decoded here, whatever became of the helper."""
HELPER_CALLS_UNDER_WAY = 32
"""Of one actor."""


class EncodeActor:
    """Owns shards from reading to commit, on one machine. Does nothing before it is loaded.

    Args:
        setup: what it works with.
        shape: what it claims of its node.
    """

    def __init__(self, setup: WorkerSetup, shape: ActorShape) -> None:
        logging.basicConfig(level=logging.WARNING)
        with contextlib.suppress(OSError):  # not on this node: then relative names fail, each by itself
            os.chdir(setup.folder)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._setup = setup
        self._shape = shape
        self._stack = ExitStack()
        self._askers = ThreadPoolExecutor(HELPER_CALLS_UNDER_WAY, "helper")
        self._loading = threading.Lock()
        self._is_loaded = False

    def load(self) -> bool:
        """Load the model, once however often it is called; True when that is done."""
        with self._loading:
            if not self._is_loaded:
                reach("load", self._node_id)
                self._open()
                self._is_loaded = True
        return True

    def _open(self) -> None:
        setup = self._setup
        if setup.num_decode_workers is None:
            (node,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == self._node_id)
            setup = replace(setup, num_decode_workers=self._shape.decode_cores(node))
        self._tools = self._stack.enter_context(open_tools(setup))
        self._worker = ShardWorker(self._tools, f" (on {socket.gethostname()})")

    def encode(self, worker_id: str, task: ShardTask) -> WorkerEvent | None:
        """See ``ShardWorker.encode``."""
        return self._worker.encode(worker_id, task)

    @ray.method(concurrency_group="control")
    def node_id(self) -> str:
        """Where it stands; answers before the model is loaded."""
        return self._node_id

    @ray.method(concurrency_group="control")
    def status(self, worker_id: str) -> WorkerStatus:
        return self._worker.status(worker_id)

    @ray.method(concurrency_group="control")
    def set_helpers(self, helpers: dict[str, Any]) -> None:
        """The decode helpers that there are from now on."""
        self._tools.decoder.set_helpers(
            {name: functools.partial(self._ask_helper, handle) for name, handle in helpers.items()}
        )

    def _ask_helper(self, handle: Any, tasks: Sequence[DecodeTask]) -> "Future[list[Decoded]]":
        # Not ObjectRef.future(): its callbacks run in a thread of Ray that must make no calls of its own.
        return self._askers.submit(
            lambda: ray.get(handle.decode.remote(list(tasks)), timeout=HELPER_TIMEOUT_S)
        )

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Give up the shards in hand at their next sample."""
        self._worker.cancel()
