"""A place is used again, but never while an array or a view of it is alive."""

import gc
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frame_places import FramePlaces

NUM_SLOTS = 2


def make_places(number: int, num_bytes: int = 1000) -> tuple[list[memoryview], FramePlaces]:
    memory = [memoryview(bytearray(num_bytes)) for _ in range(number)]
    return memory, FramePlaces(memory, NUM_SLOTS)


def decoded(memory: list[memoryview], places: FramePlaces, level: int, num_bytes: int = 1000) -> np.ndarray:
    """What a worker does with a task's place, and its owner."""
    place = places.take()
    memory[place][:num_bytes] = bytes([level]) * num_bytes
    return places.hand_out(place, num_bytes)


def test_a_place_returns_when_the_array_is_gone() -> None:
    memory, places = make_places(3)
    first = decoded(memory, places, 1)
    address = first.ctypes.data
    assert len(places.free) == 2
    del first
    assert len(places.free) == 3
    assert decoded(memory, places, 2).ctypes.data == address


def test_views_keep_the_place() -> None:
    memory, places = make_places(9)
    picture = decoded(memory, places, 1).reshape(10, 10, 10)[3][None, ..., ::2]
    tensor = torch.from_numpy(decoded(memory, places, 2).reshape(10, 100))[4:6]
    gc.collect()
    assert len(places.free) == 7
    others = [decoded(memory, places, 9) for _ in range(5)]
    assert (picture == 1).all()
    assert (tensor == 2).all()
    del picture, tensor, others
    assert len(places.free) == 9


def test_a_task_without_frames_gives_its_place_back() -> None:
    _, places = make_places(3)
    places.give_back(places.take())
    assert len(places.free) == 3


def test_when_enough_are_lent_frames_are_copied_and_tasks_have_their_places_still() -> None:
    memory, places = make_places(NUM_SLOTS + 3)
    held = [decoded(memory, places, level) for level in range(50)]
    assert [int(array[0]) for array in held] == list(range(50))
    in_memory = [any(np.may_share_memory(array, place) for place in memory) for array in held]
    assert in_memory == [True] * 3 + [False] * 47
    assert len(places.free) == NUM_SLOTS


class InterruptedList(list[int]):
    """Lets another thread act just after a place came back."""

    act: Callable[[], object] | None = None

    def append(self, place: int) -> None:
        super().append(place)
        act, self.act = self.act, None
        if act:
            act()


def test_a_place_that_is_lent_again_while_it_is_given_back_is_not_forgotten() -> None:
    """Whoever drops an array may lose the interpreter between the two steps of giving its place back."""
    memory, places = make_places(NUM_SLOTS + 2)
    places.free = free = InterruptedList(places.free)
    arrays = [decoded(memory, places, 1)]
    free.act = lambda: arrays.append(decoded(memory, places, 2))
    del arrays[0]
    arrays += [decoded(memory, places, level) for level in (3, 4, 5)]
    assert [int(array[0]) for array in arrays] == [2, 3, 4, 5]
    assert len(places.free) == NUM_SLOTS
    arrays.clear()
    assert len(places.free) == NUM_SLOTS + 2


@given(st.lists(st.integers(0, 9), max_size=60))
def test_no_array_changes_under_its_holder(steps: list[int]) -> None:
    """Hold arrays in ten hands, replacing one at each step."""
    memory, places = make_places(7, 100)
    held: dict[int, tuple[int, np.ndarray]] = {}
    for level, hand in enumerate(steps):
        held[hand] = level, decoded(memory, places, level, 50 + hand)
        assert len(places.free) >= NUM_SLOTS
        assert all((array == expected).all() for expected, array in held.values())
    held.clear()
    assert len(places.free) == 7


def test_the_memory_outlives_its_worker() -> None:
    memory, places = make_places(3)
    array = decoded(memory, places, 5)
    del memory, places
    gc.collect()
    assert (array == 5).all()
