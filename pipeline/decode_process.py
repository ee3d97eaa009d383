"""The owner's handle on one decode process: start it, hand it tasks, take its replies, end it."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile

from pipeline.decode import DecodedFrames, DecodeError, DecodeTask
from pipeline.decode_worker import READY, SlotMemory, WorkerSettings, pack_task, read_exactly, read_reply
from tokenizer.preprocess import PreprocessConfig

logger = logging.getLogger(__name__)

TASKS_PER_WORKER = 2  # one being decoded, one waiting in the socket
START_TIMEOUT_S = 120.0
GRACE_S = 5.0  # beyond the worker's own alarm, before the owner kills it


class WorkerGone(Exception):  # noqa: N818 - an event, not an error
    """The worker died, or must be killed because it does not answer."""


class DecodeProcess:
    """One decode process and the owner's ends of its socket and memory."""

    def __init__(
        self,
        *,
        decoder: str,
        preprocess: PreprocessConfig,
        frames_per_task: int,
        timeout_s: float,
        max_memory_bytes: int,
    ) -> None:
        """Start it and wait until it is ready. Raises WorkerGone if it does not come up."""
        self.num_replied = 0
        self.has_exceeded_time = False
        self.connection, theirs = socket.socketpair()
        memory_fd = anonymous_memory(SlotMemory.num_bytes(TASKS_PER_WORKER, frames_per_task))
        self.memory = SlotMemory(memory_fd, TASKS_PER_WORKER, frames_per_task)
        settings = WorkerSettings(
            socket_fd=theirs.fileno(),
            memory_fd=memory_fd,
            num_slots=TASKS_PER_WORKER,
            frames_per_slot=frames_per_task,
            decoder=decoder,
            timeout_s=timeout_s,
            max_memory_bytes=max_memory_bytes,
            preprocess=preprocess,
        )
        try:
            self.process = start_process(settings)
        finally:
            theirs.close()
            os.close(memory_fd)
        self.connection.settimeout(START_TIMEOUT_S)
        self.stream = self.connection.makefile("rb")
        try:
            read_exactly(self.stream, len(READY))
        except (EOFError, OSError) as error:
            raise WorkerGone(f"a decode worker ended with {self.stop()} before it was ready") from error
        self.connection.settimeout(timeout_s + GRACE_S)

    def send(self, task: DecodeTask) -> None:
        """Hand over one task. Raises WorkerGone."""
        try:
            self.connection.sendall(pack_task(task))
        except OSError as error:
            raise WorkerGone from error

    def receive(self) -> DecodedFrames | DecodeError:
        """Wait for the oldest task in its hands. Raises WorkerGone."""
        try:
            reply = read_reply(self.stream, self.memory.slots[self.num_replied % TASKS_PER_WORKER])
        except TimeoutError as error:
            self.process.send_signal(signal.SIGKILL)
            self.has_exceeded_time = True
            raise WorkerGone from error
        except (EOFError, OSError, ValueError) as error:  # ValueError: it wrote nonsense
            raise WorkerGone from error
        self.num_replied += 1
        return reply

    @property
    def num_begun(self) -> int:
        """Tasks begun in its life; beyond `num_replied` when it died in the middle of one."""
        return int(self.memory.num_begun[0])

    def stop(self) -> int:
        """End the process at once; returns its exit status (-N: killed by signal N)."""
        status = self.process.poll()
        self.process.kill()
        self.process.wait()
        self.stream.close()
        self.connection.close()
        return self.process.returncode if status is None else status

    def close(self) -> None:
        """Let an idle worker end by itself: its socket ends."""
        with contextlib.suppress(OSError):  # it may have died meanwhile
            self.connection.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            logger.warning("decode worker pid=%d did not exit; killed", self.process.pid)
        self.stop()


def anonymous_memory(num_bytes: int) -> int:
    """A file descriptor of shareable memory that has no name, so that no death can leave it behind."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("decoded-frames")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, num_bytes)
    return fd


def start_process(settings: WorkerSettings) -> subprocess.Popen[bytes]:
    """A fresh interpreter with our import path: nothing is inherited from a process with threads and CUDA."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.decode_worker", settings.to_json()],
        pass_fds=(settings.socket_fd, settings.memory_fd),
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
