"""The owner's handle on one decode process: start it, hand it tasks, take its replies, end it."""

import contextlib
import fcntl
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

from pipeline.decode import FRAME_SHAPE, DecodedFrames, DecodeTask
from pipeline.decode_worker import (
    FRAME_BYTES,
    READY,
    WorkerMemory,
    WorkerSettings,
    pack_task,
    unpack_reply,
)
from pipeline.frame_places import FramePlaces, num_places
from schemas.quarantine import Reason, RefusedError
from tokenizer.preprocess import PreprocessConfig

logger = logging.getLogger(__name__)

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
"""A decoder takes and frees the same few megabytes for every picture. By default glibc gives them back to the
kernel each time, which then has to clear them again, page by page: 26 faults a picture of 30 kB, a tenth of
the time it takes. So a worker keeps up to 64 MiB that it does not use; blocks of more than 32 MiB (pictures
of 11 million pixels) still go back. Other C libraries do not read these variables."""
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
        num_slots: int,
        frames_per_task: int,
        timeout_s: float,
        max_memory_bytes: int,
    ) -> None:
        """Start it and wait until it is ready. Raises WorkerGone if it does not come up."""
        self.num_slots = num_slots
        self.num_sent = 0
        self.num_replied = 0
        self.has_exceeded_time = False
        self.talks_nonsense = False
        """About the oldest task in its hands."""
        self.connection, theirs = socket.socketpair()
        shape = (num_slots, num_places(num_slots, frames_per_task * FRAME_BYTES), frames_per_task)
        memory_fd = anonymous_memory(WorkerMemory.num_bytes(*shape))
        self.memory = WorkerMemory(memory_fd, *shape)
        self.places = FramePlaces(self.memory.frames, num_slots)
        self.places_in_hand: deque[int] = deque()  # of the tasks in its hands, in order
        settings = WorkerSettings(
            socket_fd=theirs.fileno(),
            memory_fd=memory_fd,
            num_slots=num_slots,
            num_places=shape[1],
            frames_per_place=frames_per_task,
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
        self.unread = bytearray()
        try:
            is_ready = self.connection.recv(len(READY)) == READY
        except OSError:
            is_ready = False
        if not is_ready:
            raise WorkerGone(f"a decode worker ended with {self.stop()} before it was ready")
        self.patience_s = timeout_s + GRACE_S
        self.outbox: deque[memoryview] = deque()  # what the socket did not take yet: tasks of many bytes
        self.poll = select.poll()
        self.connection.setblocking(False)

    @property
    def num_unanswered(self) -> int:
        """Tasks in its hands."""
        return self.num_sent - self.num_replied

    def send(self, tasks: Sequence[DecodeTask]) -> None:
        """Hand over tasks, at most `num_slots` unanswered ones in all; never waits.

        What the socket does not take at once goes out during `receive`: the worker reads the bytes of a large
        task only after it has decoded those before it, and their time is not this task's.

        Raises:
            WorkerGone: if it died.
        """
        messages = []
        for number, task in enumerate(tasks, start=self.num_sent):
            place = self.places.take()
            self.places_in_hand.append(place)
            messages.append(pack_task(task, self.memory.inputs[number % self.num_slots], place))
        self.num_sent += len(tasks)
        self.memory.num_sent[0] = self.num_sent
        self.outbox.append(memoryview(b"".join(messages)))
        try:
            self._push()
        except OSError as error:
            raise WorkerGone from error

    def _push(self) -> None:
        """Write what the socket takes without waiting."""
        while self.outbox:
            message = self.outbox.popleft()
            try:
                num_written = self.connection.send(message) if message else 0
            except BlockingIOError:
                num_written = 0
            if num_written < len(message):
                self.outbox.appendleft(message[num_written:])
                return

    def receive(self) -> list[DecodedFrames | RefusedError]:
        """Wait for the oldest task in its hands; returns its outcome and those that arrived with it.

        One wait for several replies: under a busy interpreter each wait costs up to 5 ms to get the GIL.

        Raises:
            WorkerGone: if it died, did not answer in time (and was killed), or wrote nonsense. What it said
                before the nonsense counts, and is returned first.
        """
        outcomes: list[DecodedFrames | RefusedError] = []
        try:
            while not outcomes and not self.talks_nonsense:
                self.unread += self._arriving_bytes()
                self._read_replies(outcomes)
        except TimeoutError as error:
            self.has_exceeded_time = True
            raise WorkerGone from error
        except OSError as error:
            raise WorkerGone from error
        if not outcomes:
            raise WorkerGone
        return outcomes

    def _read_replies(self, outcomes: list[DecodedFrames | RefusedError]) -> None:
        """Take what can be taken from the bytes that arrived."""
        try:
            while self.num_replied < self.num_sent and (reply := unpack_reply(self.unread)):
                outcomes.append(self._outcome(*reply))
                self.num_replied += 1
        except Exception as error:  # whatever a reply that is none leads to
            logger.warning("decode worker pid=%d talks nonsense: %r", self.process.pid, error)
            self.talks_nonsense = True

    def _arriving_bytes(self) -> bytes:
        """Wait for bytes of replies, and send meanwhile.

        Raises:
            TimeoutError: if for `patience_s` nothing came and nothing was taken. Replies are held back by
                less than GRACE_S, so that is more than one task's time, however many are in its hands.
            WorkerGone: at the end of the socket.
        """
        while True:
            self.poll.register(self.connection, select.POLLIN | (select.POLLOUT if self.outbox else 0))
            ready = self.poll.poll(self.patience_s * 1000)
            if not ready:
                raise TimeoutError
            if ready[0][1] == select.POLLOUT:
                self._push()
            elif data := self.connection.recv(2**16):
                return data
            else:
                raise WorkerGone

    def _outcome(self, place: int, num_frames: int, body: Any) -> DecodedFrames | RefusedError:
        """What a reply says of the oldest task. Raises ValueError if it speaks of another."""
        if place != self.places_in_hand.popleft():
            raise ValueError(f"a reply about place {place}, which is not that of the oldest task")
        if num_frames == 0:
            self.places.give_back(place)
            return RefusedError(Reason(body["reason"]), body["detail"])
        pixels = self.places.hand_out(place, num_frames * FRAME_BYTES).reshape(num_frames, *FRAME_SHAPE)
        if not body:
            return DecodedFrames(pixels)
        return DecodedFrames(pixels, tuple(body["times_s"]), body["decoder"])

    @property
    def num_begun(self) -> int:
        """Tasks begun in its life; those beyond `num_replied` were not answered."""
        return int(self.memory.num_begun[0])

    def stop(self) -> int:
        """End the process at once; returns its exit status (-N: killed by signal N)."""
        status = self.process.poll()
        self.process.kill()
        self.process.wait()
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
        fd = os.memfd_create("decoded-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_bytes)
        # A worker that runs wild and shrinks it would end its owner by SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return fd
    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
    os.ftruncate(fd, num_bytes)
    return fd


def start_process(settings: WorkerSettings) -> subprocess.Popen[bytes]:
    """A fresh interpreter with our import path: nothing is inherited from a process with threads and CUDA."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.decode_worker", settings.to_json()],
        pass_fds=(settings.socket_fd, settings.memory_fd),
        env=KEPT_MEMORY
        | os.environ
        | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
