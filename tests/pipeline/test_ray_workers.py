"""`RayWorkers` against calls that break off in ways that a real cluster shows once in a thousand hours.

Ray is replaced here, not our code: actors answer as each test says. `test_ray_engine` has the real one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError, RayTaskError

from pipeline import ray_crew, ray_engine
from pipeline.actor_plan import ActorShape
from pipeline.ray_engine import RayWorkers
from pipeline.shard_driver import PoolError, ShardDriver, WorkerEvent, WorkerJoined, WorkerLost, WorkerStatus
from pipeline.shard_schedule import LossCause, ShardSchedule
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
    shape: ActorShape
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
    """The few functions of `ray` that the engine calls, at first for one node of one CPU."""

    def __init__(self, answer: Answer) -> None:
        self.resources = {"CPU": 1.0}
        self._answer = answer
        self.handles: list[Handle] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "n", "Alive": True, "Resources": self.resources}]

    def available_resources(self) -> dict[str, float]:
        return {}

    def remote(self, **options: Any) -> Callable[[type], "PretendedRay._Class"]:
        return lambda actor: PretendedRay._Class(self)

    class _Class:
        def __init__(self, ray: "PretendedRay") -> None:
            self._ray = ray

        def remote(self, setup: Any, shape: ActorShape) -> Handle:
            self._ray.handles.append(Handle(len(self._ray.handles), shape))
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
    def open_with(answer: Answer, **settings: object) -> RayWorkers:
        pretended = PretendedRay(answer)
        for module in (ray_engine, ray_crew):
            monkeypatch.setattr(module, "ray", pretended)
        for name in ("STATUS_EVERY_S", "RESIZE_EVERY_S", "PROBE_EVERY_S"):
            monkeypatch.setattr(ray_engine, name, 0.0)
        settings = {"tokenizer": "null", "num_actors": 1} | settings
        config = TokenizeConfig(input=("in",), output="out", **settings)
        return RayWorkers(config, lambda device: None)

    return open_with


def poll(workers: RayWorkers, times: int, num_wanted: int = 9) -> list[WorkerEvent]:
    polls = (workers.poll(0.0, num_wanted) for _ in range(times))
    return list(itertools.chain.from_iterable(polls))


def cut_off() -> Exception:
    return ActorUnavailableError("the connection broke", None)


def test_a_worker_whose_first_call_was_cut_off_joins_when_it_is_reached(open_workers) -> None:
    def answer(index: int, method: str, number: int) -> Any:
        return {"node_id": cut_off() if number == 1 else "n", "load": True}.get(method)

    events = poll(open_workers(answer), 4)
    assert [event for event in events if isinstance(event, WorkerJoined)] == [WorkerJoined("actor-1", 2)]


def test_a_worker_that_is_never_reached_is_replaced_and_not_reported_lost(
    open_workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver knows only workers that joined."""
    monkeypatch.setattr(ray_engine, "MAX_CUT_OFF_S", 0.0)

    def answer(index: int, method: str, number: int) -> Any:
        return {"node_id": cut_off() if index == 0 else "n", "load": True}.get(method)

    assert poll(open_workers(answer), 4) == [WorkerJoined("actor-2", 2)]


@pytest.mark.parametrize("method", ["node_id", "load", "status"])
def test_a_call_that_fails_once_is_made_again(open_workers, method: str) -> None:
    """A worker that is never asked again seems to stall, and one that never joins is idle for ever."""

    def answer(index: int, name: str, number: int) -> Any:
        if name == method and number == 1:
            return RaySystemError("out of file descriptors")
        return {"node_id": "n", "load": True, "status": lambda worker_id: WorkerStatus(worker_id)}.get(name)

    events = poll(open_workers(answer), 6)
    assert events[0] == WorkerJoined("actor-1", 2)
    assert WorkerStatus("actor-1") in events


def out_of_memory(worker_id: str, task: object) -> WorkerLost:
    return WorkerLost(worker_id, LossCause.MODEL_FAILED, "EncoderError: CUDA out of memory")


def without_decoders(worker_id: str, task: object) -> WorkerLost:
    return WorkerLost(worker_id, LossCause.DECODERS_FAILED, "decode workers do not start")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (without_decoders, "decoding fails on every worker: decode workers do not start"),
        (out_of_memory, r"the model fails on every worker: .*out of memory.*--batch-size"),
        (ActorDiedError(), "workers end before they finish a shard"),
    ],
)
def test_workers_that_all_fail_end_the_run_and_set_no_shard_aside(open_workers, encode, message: str) -> None:
    """A model that is too large for the GPU, or a GPU that is broken, is the fault of no shard."""
    workers = open_workers(
        lambda index, method, number: {"node_id": "n", "load": True, "encode": encode}.get(method)
    )
    schedule = ShardSchedule(tasks_named(100))
    with pytest.raises(PoolError, match=message):
        ShardDriver(schedule, workers, []).run(should_stop=lambda: len(ray_engine.ray.handles) > 50)
    assert schedule.failures == {}


def living() -> list[Handle]:
    return [handle for handle in ray_engine.ray.handles if not handle.is_killed]


def test_workers_that_still_wait_are_withdrawn_when_the_rest_of_the_work_needs_fewer(open_workers) -> None:
    """They are what an autoscaler starts nodes for."""
    starts = {"node_id": "n", "load": True, "status": lambda worker_id: WorkerStatus(worker_id)}
    workers = open_workers(lambda index, method, _: starts.get(method) if index < 2 else None, num_actors=6)
    assert len([event for event in poll(workers, 3) if isinstance(event, WorkerJoined)]) == 2
    assert len(living()) == 6
    poll(workers, 2, num_wanted=3)
    assert [handle.index for handle in living()] == [0, 1, 2], "the youngest first"
    poll(workers, 2, num_wanted=1)
    assert [handle.index for handle in living()] == [0, 1], "a worker that has joined was ended"


def test_once_there_was_a_gpu_workers_wait_for_one(open_workers) -> None:
    """A spot cluster that lost its GPU nodes gets others: workers without GPU would take their cores."""
    placed = {"node_id": "n"}
    workers = open_workers(
        lambda index, method, _: placed.get(method) if index >= 2 else None, tokenizer="sample", num_actors=2
    )
    poll(workers, 2)
    assert [handle.shape.num_gpus for handle in living()] == [0, 0]
    ray_engine.ray.resources = {"CPU": 8.0, "GPU": 1.0}
    poll(workers, 2)
    assert [handle.shape.num_gpus for handle in living()] == [1, 1], "the first two were not withdrawn"
    ray_engine.ray.resources = {"CPU": 0.5}
    poll(workers, 2)
    assert [handle.index for handle in living()] == [2, 3]


def test_a_gpu_on_which_no_worker_found_a_place_is_not_waited_for(open_workers) -> None:
    """Ray lists a node for some seconds after its death; a run that begins then goes on without GPUs."""
    workers = open_workers(lambda *_: None, tokenizer="sample", num_actors=None)
    ray_engine.ray.resources = {"CPU": 8.0, "GPU": 1.0}
    poll(workers, 2)
    assert [handle.shape.num_gpus for handle in living()] == [1]
    ray_engine.ray.resources = {"CPU": 8.0}
    poll(workers, 2)
    assert [handle.shape.num_gpus for handle in living()] == [0, 0]


def no_weights() -> Exception:
    return RayTaskError("load", "", FileNotFoundError("/weights/seed.pt"))


def test_a_worker_that_cannot_load_keeps_its_place_and_the_others_go_on(
    open_workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two places one is on a node without the weights."""

    def answer(index: int, method: str, number: int) -> Any:
        load = no_weights() if index % 2 else True
        return {"node_id": "n", "load": load, "status": lambda worker_id: WorkerStatus(worker_id)}.get(method)

    workers = open_workers(answer, num_actors=None, cpus_per_actor=1)
    ray_engine.ray.resources = {"CPU": 2.0}
    events = poll(workers, 20)
    assert [event for event in events if isinstance(event, WorkerJoined)] == [WorkerJoined("actor-1", 2)]
    assert len(living()) == 2, "another was started at the same place"
    assert "worker=actor-2 did not start on node n" in caplog.text
    assert "FileNotFoundError: /weights/seed.pt" in caplog.text
    monkeypatch.setattr(ray_crew, "RETRY_PLACE_S", -1.0)
    poll(workers, 1)
    assert [handle.index for handle in living()] == [0, 2], "the place was not tried again"


def test_workers_that_all_cannot_load_end_the_run(open_workers) -> None:
    workers = open_workers(
        lambda _, method, __: {"node_id": "n", "load": no_weights()}.get(method),
        num_actors=None,
        cpus_per_actor=1,
    )
    ray_engine.ray.resources = {"CPU": 2.0}
    with pytest.raises(PoolError, match=r"workers do not start: on node n .*: FileNotFoundError: /weights"):
        poll(workers, 50)
    assert len(ray_engine.ray.handles) <= 8


def test_a_worker_without_gpu_keeps_no_gpu_idle(open_workers) -> None:
    """GPU nodes that join a run on CPUs are used whole, and what is under way there goes on."""
    starts = {"node_id": "n", "load": True, "status": lambda worker_id: WorkerStatus(worker_id)}
    workers = open_workers(lambda _, method, __: starts.get(method), tokenizer="sample", num_actors=None)
    poll(workers, 2)
    ray_engine.ray.resources = {"CPU": 8.0, "GPU": 2.0}
    poll(workers, 4)
    assert [handle.shape.num_gpus for handle in living()] == [0, 1, 1]
    poll(workers, 2, num_wanted=1)
    assert len(living()) == 3, "a worker that has joined was ended"
