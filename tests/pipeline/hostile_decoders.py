"""Decoders that misbehave as told by the bytes of the task; decode processes import this file by name."""

import contextlib
import ctypes
import os
import re
import signal
import sys
import time

import numpy as np

from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_worker import REPLY_HEADER, WorkerSettings
from schemas.quarantine import Reason, RefusedError
from tokenizer.preprocess import PreprocessConfig


def loop_in_c() -> None:
    """Catastrophic backtracking: hours inside one C call that holds the GIL."""
    re.match(r"(a+)+$", "a" * 40 + "b")


def loop_with_alarm_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        time.sleep(1)


def loop_in_python() -> None:
    while True:
        pass


MISDEEDS = {
    b"segfault": lambda: ctypes.string_at(0),
    b"sigsegv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"exit": lambda: os._exit(3),
    b"loop": loop_in_python,
    b"loop in C": loop_in_c,
    b"loop, alarm blocked": loop_with_alarm_blocked,
    b"memory": lambda: np.ones(2**33, np.uint8),
}


NONSENSE = {
    b"nonsense: 5 frames": (0, 5, b""),
    b"nonsense: refused, why?": (0, 0, b"{}"),
    b"nonsense: no JSON": (0, 1, b"{{"),
    b"nonsense: endless JSON": (0, 0, b"[" * 100_000),
    b"nonsense: a sound reply about another task": (1, 1, b""),
}
"""Written among the worker's own replies, as a decoder does that writes to a file it does not own: a place
(how far behind the first task's), frames, JSON."""


def write_nonsense(place_behind_first: int, num_frames: int, body: bytes) -> None:
    settings = WorkerSettings.from_json(sys.argv[1])
    place = settings.num_places - 1 - place_behind_first  # the last of the free ones is taken first
    os.write(settings.socket_fd, REPLY_HEADER.pack(place, num_frames, len(body)) + body)


NO_FRAMES = {
    b"no frames": np.zeros((0, 224, 224, 3), np.uint8),
    b"small": np.zeros((1, 10, 10, 3), np.uint8),
    b"fractions": np.zeros((1, 224, 224, 3), np.float32),
    b"too many": np.zeros((2, 224, 224, 3), np.uint8),
}


def decode(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Frames filled with the number in the task's bytes, unless they name a misdeed.

    `once PATH MISDEED` is one that happens only while there is no file at PATH, which it makes: what comes
    from outside does not come again.
    """
    if task.data.startswith(b"once "):
        _, path, misdeed = task.data.split(b" ", 2)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            MISDEEDS[misdeed]()
        task = DecodeTask(b"1")
    if task.data.strip() in MISDEEDS:
        MISDEEDS[task.data.strip()]()
    if task.data in NONSENSE:
        write_nonsense(*NONSENSE[task.data])
        task = DecodeTask(b"1")
    if task.data in NO_FRAMES:
        return DecodedFrames(NO_FRAMES[task.data])
    if task.data == b"refuse":
        raise RefusedError(Reason.IMAGE_TRUNCATED, "as asked")
    if task.data.startswith(b"sleep "):
        time.sleep(float(task.data[6:]))
        return DecodedFrames(np.zeros((1, 224, 224, 3), np.uint8))
    first = int(task.data)
    levels = np.arange(first, first + task.num_frames, dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (task.num_frames, 224, 224, 3))
    return DecodedFrames(np.ascontiguousarray(pixels), tuple(float(level) for level in levels))
