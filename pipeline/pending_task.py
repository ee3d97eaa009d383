"""A decode task on its way: what its worker gets next, and what it is told in the end."""

import itertools
import signal
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from pipeline.decode import DecodedFrames, DecodeTask
from schemas.quarantine import Reason, RefusedError


@dataclass(slots=True, eq=False)
class PendingTask:
    """A task and the promise of its result."""

    task: DecodeTask
    future: Future[DecodedFrames]
    is_begun: bool = False
    """It was in a worker's hands, and cannot be cancelled any more."""
    is_suspect: bool = False
    """A worker died at it, or exceeded the time limit: decoded once more, alone."""


def tell(future: "Future[DecodedFrames]", outcome: DecodedFrames | BaseException) -> None:
    """Keep the promise."""
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def tasks_to_send(in_hand: deque[PendingTask], num_sent: int) -> list[DecodeTask]:
    """Those that the worker gets now: all that it has not got, but a suspect by itself.

    Args:
        in_hand: what the worker has or shall have, in order.
        num_sent: how many of the first it has already.
    """
    if num_sent and in_hand[0].is_suspect:
        return []
    rest = list(itertools.islice(in_hand, num_sent, None))
    if num_sent == 0 and rest and rest[0].is_suspect:
        return [rest[0].task]
    return [pending.task for pending in itertools.takewhile(lambda pending: not pending.is_suspect, rest)]


def cause_of_death(status: int, timeout_s: float) -> RefusedError:
    """The refusal of the task during which a worker ended with this status."""
    if status == -signal.SIGALRM:
        return RefusedError(Reason.DECODE_TIMEOUT, f"not decoded within {timeout_s:g} s")
    if status < 0:
        return RefusedError(Reason.DECODER_CRASHED, f"the decoder died of {signal.Signals(-status).name}")
    return RefusedError(Reason.DECODER_CRASHED, f"the decoder exited with status {status}")
