"""A supervised pool of decode processes, for use inside one process that also feeds a GPU.

Decoding in the process that runs Python and the GPU slows both, and a decoder that crashes or never returns
must cost one sample, not the actor. So each worker is a process of its own. One that dies or exceeds the time
limit is replaced, and the tasks in its hands go to its successor: first the one it was at, alone. Only if it
ends its second worker too is that one refused, for a worker may also die of what is not the task's fault (the
out-of-memory killer, the end of a preempted node), and what is refused is lost for good.

One thread per worker waits on its socket (asleep, without the GIL), keeps a few tasks in the worker's hands
so that it never idles, and passes results on as arrays that the caller owns; those that lie in the worker's
memory give their places back by themselves, and no slow consumer can hold up a worker (`frame_places`).
`benchmarks/decode.py` measures the pool against a plain loop.
"""

import logging
import queue
import signal
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipeline.decode import DecodedFrames, DecodeTask, load_decoder, run_decoder
from pipeline.decode_process import DecodeProcess, WorkerGone
from pipeline.pending_task import PendingTask, cause_of_death, tasks_to_send, tell
from schemas.quarantine import RefusedError
from tokenizer.preprocess import PreprocessConfig

logger = logging.getLogger(__name__)

MAX_USELESS_STARTS = 3
"""Workers in a row that did not come up or died before they began a task; when every thread has seen so many,
nothing is to be hoped for."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between useless starts, doubled each time: memory may be short for a moment."""


class NoDecodersError(RuntimeError):
    """Nothing is decoded here any more. The process that owns the pool should be replaced."""


@dataclass(frozen=True, kw_only=True)
class DecodePoolConfig:
    """How many decode processes, and their bounds."""

    num_workers: int = 2
    """Processes; 0 decodes in the calling thread (tests, debugging: no isolation, no time limit)."""
    max_in_flight: int = 64
    """Tasks submitted and not finished; `submit` waits beyond that. Give at least 4 a worker."""
    tasks_per_worker: int = 32
    """Most tasks in one worker's hands: its work while the owner's interpreter is busy elsewhere. Replies
    come in groups of half as many, for each wake-up of the owner costs it processor time."""
    timeout_s: float = 30.0
    """Wall time of one task, after which its worker is killed; the second time the task is refused."""
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
        if self.tasks_per_worker < 1:
            raise ValueError(f"decode.tasks_per_worker must be at least 1, got {self.tasks_per_worker}")
        if self.timeout_s <= 0:
            raise ValueError(f"decode.timeout_s must be positive, got {self.timeout_s}")

    @property
    def slots_per_worker(self) -> int:
        """`tasks_per_worker`, or an even share of `max_in_flight` where that is less."""
        return max(1, min(self.tasks_per_worker, self.max_in_flight // max(self.num_workers, 1)))


class DecodePool:
    """Decodes tasks in supervised processes; thread-safe; a context manager.

    A refused task (bad image, crashed decoder, time limit) is a future that raises RefusedError.
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
        self._closing = threading.Event()
        self._useless_starts = [0] * config.num_workers
        """By thread, since its last worker that began a task."""
        self._is_hopeless = False
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"decode-worker-{index}", daemon=True)
            for index in range(config.num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, task: DecodeTask, future: "Future[DecodedFrames] | None" = None
    ) -> "Future[DecodedFrames]":
        """Queue one task; waits while `max_in_flight` tasks are unfinished.

        Args:
            task: what to decode.
            future: the promise to keep, where the caller has given one already; otherwise a new one.

        Raises:
            RuntimeError: if the pool is closed.
            ValueError: if the task asks for more frames than a slot holds.
        """
        if task.num_frames > self.config.frames_per_task:
            limit = self.config.frames_per_task
            raise ValueError(f"{task.num_frames} frames asked for, decode.frames_per_task is {limit}")
        pending = PendingTask(task, future or Future())
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
        self._closing.set()
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
        except RefusedError as error:
            pending.future.set_exception(error)

    def _cancel_waiting(self) -> None:
        while True:
            try:
                pending = self._waiting.get_nowait()
            except queue.Empty:
                return
            if pending is None:
                continue
            if pending.is_begun:  # handed back by a thread whose worker did not start
                self._finish(pending, RuntimeError("the decode pool is closed"))
            else:
                pending.future.cancel()
                self._free_places.release()

    def _is_still_wanted(self, pending: PendingTask) -> bool:
        """False, and its place freed, when the submitter cancelled the future."""
        pending.is_begun = pending.is_begun or pending.future.set_running_or_notify_cancel()
        if not pending.is_begun:
            self._free_places.release()
        return pending.is_begun

    def _finish(self, pending: PendingTask, outcome: DecodedFrames | BaseException) -> None:
        self._free_places.release()
        tell(pending.future, outcome)

    def _serve(self, index: int) -> None:
        """A thread: workers until the pool closes. What it has in hand is never left without an answer."""
        in_hand: deque[PendingTask] = deque()
        reason = "decode workers do not start; their messages are on stderr"
        try:
            if self._run_workers(index, in_hand):
                return
        except Exception as error:  # ours, whatever it is: without its thread the pool would wait for ever
            logger.exception("a thread of the decode pool failed; the pool is given up")
            reason = f"a thread of the decode pool failed: {type(error).__name__}: {error}"
            self._is_hopeless = True
        self._hand_back(in_hand)
        self._fail_waiting(NoDecodersError(reason))

    def _run_workers(self, index: int, in_hand: deque[PendingTask]) -> bool:
        """One worker after the other, until the pool closes; False if nothing is to be hoped for before."""
        while not self._is_hopeless:
            failure = "a decode worker died before it began a task"
            try:
                worker = self._start_worker()
            except (WorkerGone, OSError) as error:
                failure = str(error)
            else:
                if not self._note_start(index):
                    worker.close()
                    return False
                try:
                    self._feed(worker, in_hand, index)
                    worker.close()
                    return True
                except WorkerGone:
                    self._account_for(worker, in_hand)
                if worker.num_begun:
                    self._useless_starts[index] = 0
                    continue
            self._hand_back(in_hand)
            if self._note_useless_start(index) and self._closing.wait(pause_s(self._useless_starts[index])):
                return True
            # Said behind the pause: what ends this whole process may end its workers first.
            logger.error("%s (start %d in vain)", failure, self._useless_starts[index])
        return False

    def _note_start(self, index: int) -> bool:
        """A worker is ready, which gives its thread one more try at least; False if it comes too late."""
        with self._state_lock:
            self._useless_starts[index] = min(self._useless_starts[index], MAX_USELESS_STARTS - 1)
            return not self._is_hopeless

    def _note_useless_start(self, index: int) -> bool:
        """False when every thread has tried in vain often enough: then the pool is given up."""
        with self._state_lock:
            self._useless_starts[index] += 1
            self._is_hopeless |= all(number >= MAX_USELESS_STARTS for number in self._useless_starts)
            return not self._is_hopeless

    def _hand_back(self, in_hand: deque[PendingTask]) -> None:
        """Leave them to the other threads, whose workers may be sound."""
        while in_hand:
            self._waiting.put(in_hand.popleft())

    def _start_worker(self) -> DecodeProcess:
        return DecodeProcess(
            decoder=self.config.decoder,
            preprocess=self.config.preprocess,
            num_slots=self.config.slots_per_worker,
            frames_per_task=self.config.frames_per_task,
            timeout_s=self.config.timeout_s,
            max_memory_bytes=self.config.max_memory_bytes,
        )

    def _feed(self, worker: DecodeProcess, in_hand: deque[PendingTask], index: int) -> None:
        """Keep the worker busy until the pool closes; returns with nothing in hand. Raises WorkerGone."""
        is_closing = self._closing.is_set()  # the predecessor may have taken the word of it from the queue
        while in_hand or not is_closing:
            if not is_closing and not any(pending.is_suspect for pending in in_hand):
                is_closing = self._take_waiting(in_hand)
            if to_send := tasks_to_send(in_hand, worker.num_unanswered):
                worker.send(to_send)
            if in_hand:
                outcomes = worker.receive()
                self._free_places.release(len(outcomes))  # first: who is told may submit the next task
                for outcome in outcomes:
                    tell(in_hand.popleft().future, outcome)
                self._useless_starts[index] = 0

    def _take_waiting(self, in_hand: deque[PendingTask]) -> bool:
        """Add a share of the waiting tasks; waits for one if there is none. True if the pool closes."""
        share = 1 + self._waiting.qsize() // self.config.num_workers
        num_wanted = min(self.config.slots_per_worker, len(in_hand) + share)
        while len(in_hand) < num_wanted:
            try:
                arrival = self._waiting.get(block=not in_hand)
            except queue.Empty:
                break
            if arrival is None:
                return True
            if self._is_still_wanted(arrival):
                in_hand.append(arrival)
        return False

    def _account_for(self, worker: DecodeProcess, in_hand: deque[PendingTask]) -> None:
        """A worker is gone: its successor begins with the task it was at, or that is refused the second time.

        The other tasks stay in hand; of those before the culprit only the replies are lost.
        """
        status = worker.stop()
        status = -signal.SIGALRM if worker.has_exceeded_time else status
        with self._state_lock:
            self.num_replaced += 1
        num_begun = worker.num_begun - worker.num_replied
        if worker.talks_nonsense or not 0 <= num_begun <= len(in_hand):  # it ran wild, over its counter too
            num_begun = min(1, len(in_hand))
        logger.warning(
            "decode worker pid=%d ended with %d at %s; replacing it",
            worker.process.pid, status, "a task" if num_begun else "no task",
        )  # fmt: skip
        if num_begun == 0:
            return
        culprit = in_hand[num_begun - 1]
        del in_hand[num_begun - 1]
        if culprit.is_suspect:
            self._finish(culprit, cause_of_death(status, self.config.timeout_s))
        else:
            culprit.is_suspect = True
            in_hand.appendleft(culprit)

    def _fail_waiting(self, reason: NoDecodersError) -> None:
        """Nobody decodes any more: nothing submitted may wait forever."""
        while (arrival := self._waiting.get()) is not None:
            if self._is_still_wanted(arrival):
                self._finish(arrival, reason)


def pause_s(num_useless_starts: int) -> float:
    """Seconds to wait before the next start."""
    return min(FIRST_PAUSE_S * 2.0 ** min(num_useless_starts - 1, 10), LONGEST_PAUSE_S)
