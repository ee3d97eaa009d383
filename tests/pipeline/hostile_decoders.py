"""Decoders that misbehave as told by the bytes of the task; decode processes import this file by name."""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time

import numpy as np

from pipeline.decode import DecodedFrames, DecodeTask
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
    b"nonsense: 5 frames": b"\x05\x00\x00\x00\x00\x00",
    b"nonsense: refused, why?": b"\x00\x00\x02\x00\x00\x00{}",
    b"nonsense: no JSON": b"\x01\x00\x02\x00\x00\x00{{",
    b"nonsense: endless JSON": b"\x00\x00\xa0\x86\x01\x00" + b"[" * 100_000,
}
"""Written over the worker's own replies, as a decoder does that writes to a file it does not own."""


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
        os.write(json.loads(sys.argv[1])["socket_fd"], NONSENSE[task.data])
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
