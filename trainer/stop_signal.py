"""Being asked to stop: a run notes it, finishes its step, saves and ends."""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)
_SAME_STOP_S = 2.0


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can save and end between two steps.

    A second SIGINT interrupts at once, unless it follows within two seconds: torchrun passes on the one that
    the terminal has sent to everybody already.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._noted_s = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.is_set and number == signal.SIGINT and now - self._noted_s > _SAME_STOP_S:
            raise KeyboardInterrupt
        if self.is_set:
            return
        self.is_set, self._noted_s = True, now
        logger.info("stops after this step and saves, which may take minutes; Ctrl-C again: at once")
