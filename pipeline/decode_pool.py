"""A supervised pool of decode processes for use inside one process that also feeds a GPU.

What it is for: decoding in the process that runs Python and the GPU slows both (one busy interpreter thread made
decoding five times slower, `docs/preprocessing.md`), and a decoder that crashes or never returns must cost one
sample. Here each worker is a process of its own; one that dies or exceeds the time limit fails exactly the task it
had begun, is replaced, and the tasks queued behind it go to its successor.

One thread per worker waits on its socket (asleep, without the GIL), keeps two tasks in the worker's hands so that
it never idles, and copies results out of shared memory into arrays that the caller owns: 15 microseconds a picture,
for which no lease can be forgotten and no slot can be held by a slow consumer. Measured in `benchmarks/decode.py`.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipeline.decode import DecodedFrames, DecodeError, DecodeTask, load_decoder, run_decoder
from pipeline.decode_worker import READY, SlotMemory, WorkerSettings, pack_task, read_exactly, read_reply
from schemas.quarantine import Reason
from tokenizer.preprocess import PreprocessConfig

logger = logging.getLogger(__name__)

TASKS_PER_WORKER = 2  # one being decoded, one waiting in the socket
START_TIMEOUT_S = 120.0
MAX_USELESS_STARTS = 3  # workers in a row that died before they began a task
GRACE_S = 5.0  # beyond the worker's own alarm, before the owner kills it


@dataclass(frozen=True, kw_only=True)
class DecodePoolConfig:
    """How many decode processes, and their bounds."""

    num_workers: int = 2
    """Processes; 0 decodes in the calling thread (tests, debugging: no isolation, no time limit)."""
    max_in_flight: int = 64
    """Tasks submitted and not finished; `submit` waits beyond that."""
    timeout_s: float = 30.0
    """Wall time of one task, after which its worker is killed and the task refused."""
    max_memory_bytes: int = 4 * 2**30
    """Private memory of one worker; 0 sets no limit."""
    frames_per_task: int = 1
    """Most frames of one task: 1 for images."""
    decoder: str = "pipeline.decode:decode_task"
    """The function that decodes, `package.module:function`."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"decode.num_workers must be at least 0, got {self.num_workers}")
        if self.max_in_flight < 1 or self.frames_per_task < 1:
            raise ValueError("decode.max_in_flight and decode.frames_per_task must be at least 1")
        if self.timeout_s <= 0:
            raise ValueError(f"decode.timeout_s must be positive, got {self.timeout_s}")


class WorkerGone(Exception):  # noqa: N818 - an event, not an error
    """The worker died, or must be killed because it does not answer."""


class DecodeWorker:
    """One decode process and the owner's ends of its socket and memory."""

    def __init__(self, config: DecodePoolConfig) -> None:
        """Start it and wait until it is ready. Raises WorkerGone if it does not come up."""
        self.num_replied = 0
        self.has_exceeded_time = False
        self.connection, theirs = socket.socketpair()
        memory_fd = anonymous_memory(SlotMemory.num_bytes(TASKS_PER_WORKER, config.frames_per_task))
        self.memory = SlotMemory(memory_fd, TASKS_PER_WORKER, config.frames_per_task)
        settings = WorkerSettings(
            socket_fd=theirs.fileno(),
            memory_fd=memory_fd,
            num_slots=TASKS_PER_WORKER,
            frames_per_slot=config.frames_per_task,
            decoder=config.decoder,
            timeout_s=config.timeout_s,
            max_memory_bytes=config.max_memory_bytes,
            preprocess=config.preprocess,
        )
        self.process = start_process(settings)
        theirs.close()
        os.close(memory_fd)
        self.connection.settimeout(START_TIMEOUT_S)
        self.stream = self.connection.makefile("rb")
        try:
            read_exactly(self.stream, len(READY))
        except (EOFError, OSError) as error:
            raise WorkerGone(f"a decode worker ended with {self.stop()} before it was ready") from error
        self.connection.settimeout(config.timeout_s + GRACE_S)

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
        """End the process at once; returns its exit status as subprocess gives it (-N: killed by signal N)."""
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
    """A fresh interpreter (nothing is inherited from a process that has threads and CUDA) with our import path."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.decode_worker", settings.to_json()],
        pass_fds=(settings.socket_fd, settings.memory_fd),
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


@dataclass(frozen=True, slots=True, eq=False)
class PendingTask:
    """A task and the promise of its result."""

    task: DecodeTask
    future: Future[DecodedFrames]


class DecodePool:
    """Decodes tasks in supervised processes; thread-safe; a context manager.

    A refused task (bad image, crashed decoder, time limit) is a future that raises DecodeError with its reason.
    """

    def __init__(self, config: DecodePoolConfig) -> None:
        """Start the workers in the background.

        Raises:
            ValueError: if the decoder cannot be imported.
        """
        self.config = config
        self.num_replaced = 0
        """Workers that died or were killed so far."""
        self._decoder = load_decoder(config.decoder)
        self._free_places = threading.BoundedSemaphore(config.max_in_flight)
        self._waiting: queue.SimpleQueue[PendingTask | None] = queue.SimpleQueue()
        self._state_lock = threading.Lock()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._serve_worker, name=f"decode-worker-{index}", daemon=True)
            for index in range(config.num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: DecodeTask) -> "Future[DecodedFrames]":
        """Queue one task; waits while `max_in_flight` tasks are unfinished.

        Raises:
            RuntimeError: if the pool is closed.
            ValueError: if the task asks for more frames than a slot holds.
        """
        if task.num_frames > self.config.frames_per_task:
            limit = self.config.frames_per_task
            raise ValueError(f"{task.num_frames} frames asked for, decode.frames_per_task is {limit}")
        pending = PendingTask(task, Future())
        if self.config.num_workers == 0:
            self._decode_here(pending)
            return pending.future
        self._free_places.acquire()
        with self._state_lock:
            if self._is_closed:
                self._free_places.release()
                raise RuntimeError("the decode pool is closed")
            self._waiting.put(pending)
        return pending.future

    def close(self) -> None:
        """Cancel what waits, finish what is being decoded, end the workers. Safe to call twice."""
        with self._state_lock:
            self._is_closed = True
        self._cancel_waiting()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._cancel_waiting()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode_here(self, pending: PendingTask) -> None:
        if self._is_closed:
            raise RuntimeError("the decode pool is closed")
        try:
            pending.future.set_result(run_decoder(self._decoder, pending.task, self.config.preprocess))
        except DecodeError as error:
            pending.future.set_exception(error)

    def _cancel_waiting(self) -> None:
        while True:
            try:
                pending = self._waiting.get_nowait()
            except queue.Empty:
                return
            if pending is not None:
                pending.future.cancel()
                self._free_places.release()

    def _finish(self, pending: PendingTask, outcome: DecodedFrames | BaseException) -> None:
        if isinstance(outcome, BaseException):
            pending.future.set_exception(outcome)
        else:
            pending.future.set_result(outcome)
        self._free_places.release()

    def _serve_worker(self) -> None:
        """One worker after the other, until the pool closes; runs in a thread of its own."""
        in_hand: deque[PendingTask] = deque()
        num_useless_starts = 0
        while num_useless_starts < MAX_USELESS_STARTS:
            num_useless_starts += 1
            try:
                worker = DecodeWorker(self.config)
            except (WorkerGone, OSError) as error:
                logger.error("%s (attempt %d of %d)", error, num_useless_starts, MAX_USELESS_STARTS)
                continue
            try:
                self._feed(worker, in_hand)
                return worker.close()
            except WorkerGone:
                self._account_for(worker, in_hand)
            if worker.num_begun:
                num_useless_starts = 0
        self._fail_all(in_hand)

    def _feed(self, worker: DecodeWorker, in_hand: deque[PendingTask]) -> None:
        """Keep the worker busy until the pool closes; returns with nothing in hand. Raises WorkerGone."""
        for pending in in_hand:  # left by a predecessor that had not begun them
            worker.send(pending.task)
        is_closing = False
        while True:
            while not is_closing and len(in_hand) < TASKS_PER_WORKER:
                try:
                    pending = self._waiting.get(block=not in_hand)
                except queue.Empty:
                    break
                if pending is None:
                    is_closing = True
                elif pending.future.set_running_or_notify_cancel():
                    in_hand.append(pending)
                    worker.send(pending.task)
                else:
                    self._free_places.release()
            if not in_hand:
                return
            outcome = worker.receive()
            self._finish(in_hand.popleft(), outcome)

    def _account_for(self, worker: DecodeWorker, in_hand: deque[PendingTask]) -> None:
        """A worker is gone: refuse the task that it had begun, and keep the others for its successor."""
        status = worker.stop()
        with self._state_lock:
            self.num_replaced += 1
        logger.warning("decode worker pid=%d ended with %d; replacing it", worker.process.pid, status)
        if worker.num_begun > worker.num_replied:
            status = -signal.SIGALRM if worker.has_exceeded_time else status
            self._finish(in_hand.popleft(), cause_of_death(status, self.config.timeout_s))

    def _fail_all(self, in_hand: deque[PendingTask]) -> None:
        """No worker can be started: nothing submitted may wait forever."""
        reason = RuntimeError("decode workers do not start; their messages are on stderr")
        for pending in in_hand:
            self._finish(pending, reason)
        while (pending := self._waiting.get()) is not None:
            if pending.future.set_running_or_notify_cancel():
                self._finish(pending, reason)
            else:
                self._free_places.release()


def cause_of_death(status: int, timeout_s: float) -> DecodeError:
    """The refusal of the task during which a worker ended with this status."""
    if status == -signal.SIGALRM:
        return DecodeError(Reason.DECODE_TIMEOUT, f"not decoded within {timeout_s:g} s")
    if status < 0:
        return DecodeError(Reason.DECODER_CRASHED, f"the decoder died of {signal.Signals(-status).name}")
    return DecodeError(Reason.DECODER_CRASHED, f"the decoder exited with status {status}")
