"""Processes that download, and that never outlive the one that started them.

Every worker holds the reading end of a pipe whose writing end only their parent has. When the parent closes
it, or dies however suddenly, the pipe ends, and a thread in each worker ends its process at once: downloads
that are under way cannot be interrupted otherwise.
"""

import multiprocessing
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

from pipeline.guarded_http import HttpLimits, guarded_opener
from pipeline.opt_out import OptOut
from pipeline.prefixed_output import PrefixedOutput

IMG2DATASET_PREFIX = "img2dataset: "
"""Before what it prints, progress and errors, which goes to stderr."""


@contextmanager
def download_workers(num_processes: int, limits: HttpLimits, opt_out: OptOut | None) -> Iterator[Executor]:
    """Where shards are downloaded; every ``urlopen`` there goes through the guard.

    If the block raises, the processes end at once and what they were doing is lost.

    Args:
        num_processes: 0 for one thread of this process, which ends when its shard does.
        limits: of the guard.
        opt_out: which servers' wishes are honoured; None for nobody's.
    """
    if not num_processes:
        with _thread(limits, opt_out) as thread:
            yield thread
        return
    context = multiprocessing.get_context("spawn")  # threads of the caller would not survive a fork
    alive, parent_lives = context.Pipe(duplex=False)
    with (
        alive,
        parent_lives,
        ProcessPoolExecutor(num_processes, context, _start_worker, (alive, limits, opt_out)) as processes,
    ):
        try:
            yield processes
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            parent_lives.close()
            raise


@contextmanager
def _thread(limits: HttpLimits, opt_out: OptOut | None) -> Iterator[Executor]:
    _install_guard(limits, opt_out)
    thread = ThreadPoolExecutor(1)
    try:
        yield thread
    finally:
        thread.shutdown(cancel_futures=True)
        urllib.request.install_opener(urllib.request.build_opener())


def _start_worker(alive: Connection, limits: HttpLimits, opt_out: OptOut | None) -> None:
    sys.stdout = PrefixedOutput(IMG2DATASET_PREFIX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    threading.Thread(target=_end_with_parent, args=(alive,), name="parent-watch", daemon=True).start()
    _install_guard(limits, opt_out)


def _end_with_parent(alive: Connection) -> None:
    alive.poll(None)  # nothing is ever sent: it returns when the other end is gone
    os._exit(1)


def _install_guard(limits: HttpLimits, opt_out: OptOut | None) -> None:
    """img2dataset calls ``urlopen``; this is how the standard library lets a process say what that uses."""
    urllib.request.install_opener(guarded_opener(limits, opt_out))
