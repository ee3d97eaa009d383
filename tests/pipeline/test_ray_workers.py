"""`RayWorkers` against calls that break off in ways that a real cluster shows once in a thousand hours.

Ray is replaced here, not our code: actors answer as each test says. `test_ray_engine` has the real one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError

from pipeline import ray_engine
from pipeline.ray_engine import RayWorkers
from pipeline.shard_driver import PoolError, ShardDriver, WorkerEvent, WorkerJoined, WorkerLost, WorkerStatus
from pipeline.shard_schedule import Loss, ShardSchedule
from pipeline.tokenize_config import TokenizeConfig
from tests.pipeline.simulated_workers import tasks_named

Answer = Callable[[int, str, int], Any]
"""What the n-th call of a method of an actor brings: a value, an exception, None for nothing yet."""


@dataclass
class Call:
    handle: "Handle"
    method: str
    number: int
    arguments: tuple[Any, ...]

    def __hash__(self) -> int:
        return id(self)


@dataclass
class Handle:
    index: int
    counts: dict[str, int] = field(default_factory=dict)
    is_killed: bool = False

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        handle = self

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Call:
                assert not handle.is_killed, f"{method} of an actor that was ended"
                number = handle.counts[method] = handle.counts.get(method, 0) + 1
                return Call(handle, method, number, arguments)

        return Method


class PretendedRay:
    """The few functions of `ray` that the engine calls, for one node of one CPU."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.handles: list[Handle] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "n", "Alive": True, "Resources": {"CPU": 1.0}}]

    def available_resources(self) -> dict[str, float]:
        return {}

    def remote(self, **options: Any) -> Callable[[type], "PretendedRay._Class"]:
        return lambda actor: PretendedRay._Class(self)

    class _Class:
        def __init__(self, ray: "PretendedRay") -> None:
            self._ray = ray

        def remote(self, setup: Any) -> Handle:
            self._ray.handles.append(Handle(len(self._ray.handles)))
            return self._ray.handles[-1]

    def wait(self, calls: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        ready = [call for call in calls if self._brings(call) is not None]
        return ready[:num_returns], [call for call in calls if call not in ready[:num_returns]]

    def get(self, call: Call) -> Any:
        brought = self._brings(call)
        if isinstance(brought, Exception):
            raise brought
        return brought

    def kill(self, handle: Handle) -> None:
        handle.is_killed = True

    def _brings(self, call: Call) -> Any:
        brought = self._answer(call.handle.index, call.method, call.number)
        return brought(*call.arguments) if callable(brought) else brought


@pytest.fixture
def open_workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], RayWorkers]:
    def open_with(answer: Answer) -> RayWorkers:
        monkeypatch.setattr(ray_engine, "ray", PretendedRay(answer))
        for name in ("STATUS_EVERY_S", "RESIZE_EVERY_S", "PROBE_EVERY_S"):
            monkeypatch.setattr(ray_engine, name, 0.0)
        config = TokenizeConfig(input=("in",), output="out", tokenizer="null", num_actors=1)
        return RayWorkers(config, lambda device, cores: None)

    return open_with


def poll(workers: RayWorkers, times: int) -> list[WorkerEvent]:
    polls = (workers.poll(0.0, num_wanted=9) for _ in range(times))
    return list(itertools.chain.from_iterable(polls))


def cut_off() -> Exception:
    return ActorUnavailableError("the connection broke", None)


def test_a_worker_whose_first_call_was_cut_off_joins_when_it_is_reached(open_workers) -> None:
    def answer(index: int, method: str, number: int) -> Any:
        return {"node_id": cut_off() if number == 1 else "n"}.get(method)

    events = poll(open_workers(answer), 4)
    assert [event for event in events if isinstance(event, WorkerJoined)] == [WorkerJoined("actor-1", 2)]


def test_a_worker_that_is_never_reached_is_replaced_and_not_reported_lost(
    open_workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver knows only workers that joined."""
    monkeypatch.setattr(ray_engine, "MAX_CUT_OFF_S", 0.0)

    def answer(index: int, method: str, number: int) -> Any:
        return {"node_id": cut_off() if index == 0 else "n"}.get(method)

    assert poll(open_workers(answer), 4) == [WorkerJoined("actor-2", 2)]


@pytest.mark.parametrize("method", ["node_id", "status"])
def test_a_call_that_fails_once_is_made_again(open_workers, method: str) -> None:
    """A worker that is never asked again seems to stall, and one that never joins is idle for ever."""

    def answer(index: int, name: str, number: int) -> Any:
        if name == method and number == 1:
            return RaySystemError("out of file descriptors")
        return {"node_id": "n", "status": lambda worker_id: WorkerStatus(worker_id)}.get(name)

    events = poll(open_workers(answer), 6)
    assert events[0] == WorkerJoined("actor-1", 2)
    assert WorkerStatus("actor-1") in events


def out_of_memory(worker_id: str, task: object) -> WorkerLost:
    return WorkerLost(worker_id, Loss.MODEL_FAILED, "EncoderError: CUDA out of memory")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (out_of_memory, r"the model fails on every worker: .*out of memory.*--batch-size"),
        (ActorDiedError(), "workers end before they finish a shard"),
    ],
)
def test_workers_that_all_fail_end_the_run_and_set_no_shard_aside(open_workers, encode, message: str) -> None:
    """A model that is too large for the GPU, or a GPU that is broken, is the fault of no shard."""
    workers = open_workers(lambda index, method, number: {"node_id": "n", "encode": encode}.get(method))
    schedule = ShardSchedule(tasks_named(100))
    with pytest.raises(PoolError, match=message):
        ShardDriver(schedule, workers, []).run(should_stop=lambda: len(ray_engine.ray.handles) > 50)
    assert schedule.failures == {}
