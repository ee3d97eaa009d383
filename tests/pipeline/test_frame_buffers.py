"""Memory is used again, but never while an array or a view of it is alive."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline.frame_buffers
from pipeline.frame_buffers import FrameBuffers


def filled(level: int, num_bytes: int = 1000) -> memoryview:
    return memoryview(bytes([level]) * num_bytes)


def test_memory_returns_when_the_array_is_gone() -> None:
    buffers = FrameBuffers(1000)
    first = buffers.copy(filled(1))
    address = first.ctypes.data
    assert not buffers.free
    del first
    assert len(buffers.free) == 1
    assert buffers.copy(filled(2)).ctypes.data == address


def test_views_keep_the_memory() -> None:
    buffers = FrameBuffers(1000)
    picture = buffers.copy(filled(1)).reshape(10, 10, 10)[3][None, ..., ::2]
    tensor = torch.from_numpy(buffers.copy(filled(2)).reshape(10, 100))[4:6]
    gc.collect()
    assert not buffers.free
    others = [buffers.copy(filled(9)) for _ in range(5)]
    assert (picture == 1).all()
    assert (tensor == 2).all()
    del picture, tensor, others
    assert len(buffers.free) == 7


@given(st.lists(st.integers(0, 9), max_size=60))
def test_no_array_changes_under_its_holder(steps: list[int]) -> None:
    """Hold arrays in ten places, replacing one at each step."""
    buffers = FrameBuffers(100)
    held: dict[int, tuple[int, np.ndarray]] = {}
    for level, place in enumerate(steps):
        held[place] = level, buffers.copy(filled(level, 50 + place))
        for expected, array in held.values():
            assert (array == expected).all()
    assert len(buffers.free) + len(held) <= 11


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.frame_buffers, "MAX_FREE_BYTES", 35)
    buffers = FrameBuffers(10)
    arrays = [buffers.copy(filled(1, 10)) for _ in range(7)]
    arrays.clear()
    assert len(buffers.free) == 3
