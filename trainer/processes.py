"""The process group of a run: as torchrun started it, or one process alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Made = TypeVar("Made")
_WAIT_FOR_FIRST = timedelta(hours=12)
"""The usual minutes are too few for what one process does while the others wait."""


def choose_device(name: str) -> torch.device:
    """The device of this process; ``auto`` takes this rank's GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes of the run, or stand alone; a group that exists already is used as it is."""
    if device.type == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank(fallback_rank=0))
    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_first_rank(make: Callable[[], Made]) -> Made | None:
    """Let the first process write or work out what needs only one; the others wait, and get None.

    ``make`` must not communicate.
    """
    group = dist.new_group(backend="gloo", timeout=_WAIT_FOR_FIRST)
    made = make() if dist.get_rank() == 0 else None
    dist.barrier(group=group)
    dist.destroy_process_group(group)
    return made
