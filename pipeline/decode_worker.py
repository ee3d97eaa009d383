"""The process that decodes: `python -m pipeline.decode_worker SETTINGS`, started by `pipeline.decode_pool`.

One socket carries tasks in and short replies out, in order. Pixels go through memory that only this worker
and its owner share: a counter of the tasks begun, then a few slots, of which task i uses slot i modulo their
number. A worker that runs wild can spoil its own replies and nothing else, and nothing that it says is ever
unpickled.

It ends by itself: at the end of the socket (the owner closed it or died, however it died), and by SIGALRM
when a task takes longer than its limit, even when the decoder never returns to Python.
"""

import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import (
    DecodedFrames,
    DecodeError,
    Decoder,
    DecodeTask,
    TaskKind,
    load_decoder,
    run_decoder,
)
from schemas.quarantine import Reason
from tokenizer.preprocess import PreprocessConfig
from tokenizer.resize import IMAGE_SIZE, squash

FRAME_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
FRAME_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
COUNTER_BYTES = 4096  # one page, so that slots start on a page

TASK_HEADER = struct.Struct("<BHIQ")  # index of the kind, frames wanted, bytes of options, bytes of data
REPLY_HEADER = struct.Struct("<BHI")  # 1 decoded or 0 refused, frames in the slot, bytes of JSON that follow
READY = b"ready"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is told on its command line, as JSON."""

    socket_fd: int
    memory_fd: int
    num_slots: int
    frames_per_slot: int
    decoder: str
    timeout_s: float
    max_memory_bytes: int
    preprocess: PreprocessConfig

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkerSettings":
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"preprocess": PreprocessConfig(**fields["preprocess"])})


class SlotMemory:
    """The memory between owner and worker: the counter of tasks begun, and the slots."""

    def __init__(self, fd: int, num_slots: int, frames_per_slot: int) -> None:
        memory = mmap.mmap(fd, self.num_bytes(num_slots, frames_per_slot))
        self.num_begun = np.frombuffer(memory, np.int64, 1)
        pixels = np.frombuffer(memory, np.uint8, offset=COUNTER_BYTES)
        self.slots: NDArray[np.uint8] = pixels.reshape(num_slots, frames_per_slot, *FRAME_SHAPE)

    @staticmethod
    def num_bytes(num_slots: int, frames_per_slot: int) -> int:
        return COUNTER_BYTES + num_slots * frames_per_slot * FRAME_BYTES


def pack_task(task: DecodeTask) -> bytes:
    """The message of one task."""
    options = task.options.encode()
    kind = list(TaskKind).index(task.kind)
    header = TASK_HEADER.pack(kind, task.num_frames, len(options), len(task.data))
    return b"".join((header, options, task.data))


def pack_reply(num_frames: int, body: object) -> bytes:
    """The message of `num_frames` frames in the slot (with times and decoder), or of a refusal (none)."""
    text = json.dumps(body).encode()
    return REPLY_HEADER.pack(num_frames > 0, num_frames, len(text)) + text


def read_reply(stream: BufferedReader, slot: NDArray[np.uint8]) -> DecodedFrames | DecodeError:
    """The owner's side of `pack_reply`; the pixels are copied out, so that the slot is free at once.

    Raises:
        EOFError: if the worker is gone.
    """
    is_decoded, num_frames, num_bytes = REPLY_HEADER.unpack(read_exactly(stream, REPLY_HEADER.size))
    body = json.loads(read_exactly(stream, num_bytes))
    if is_decoded:
        return DecodedFrames(slot[:num_frames].copy(), tuple(body["times_s"]), body["decoder"])
    return DecodeError(Reason(body["reason"]), body["detail"])


def read_exactly(stream: BufferedReader, num_bytes: int) -> bytes:
    """Raises EOFError when the other side is gone before that."""
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


def answer_tasks(settings: WorkerSettings, connection: socket.socket, decoder: Decoder) -> None:
    """Decode until the socket ends (EOFError)."""
    memory = SlotMemory(settings.memory_fd, settings.num_slots, settings.frames_per_slot)
    stream = connection.makefile("rb")
    kinds = list(TaskKind)
    while True:
        header = TASK_HEADER.unpack(read_exactly(stream, TASK_HEADER.size))
        kind, num_frames, options_bytes, data_bytes = header
        slot = memory.slots[memory.num_begun[0] % settings.num_slots]
        memory.num_begun[0] += 1
        options = read_exactly(stream, options_bytes).decode()
        task = DecodeTask(read_exactly(stream, data_bytes), kinds[kind], num_frames, options)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)
        reply = decode_into(slot, task, decoder, settings.preprocess)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.sendall(reply)


def decode_into(
    slot: NDArray[np.uint8], task: DecodeTask, decoder: Decoder, config: PreprocessConfig
) -> bytes:
    """Decode one task into its slot; returns the reply."""
    try:
        frames = run_decoder(decoder, task, config)
    except DecodeError as error:
        return pack_reply(0, {"reason": error.reason, "detail": error.detail})
    slot[: len(frames.pixels)] = frames.pixels
    return pack_reply(len(frames.pixels), {"times_s": frames.times_s, "decoder": frames.decoder})


def limit_this_process(max_memory_bytes: int) -> None:
    """Bound its memory, offer it first to the kernel's out-of-memory killer, leave Ctrl-C to the owner.

    No core dumps: a corpus may crash it often.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_memory_bytes:
        _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, hard_limit))
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def main(arguments: Sequence[str]) -> None:
    """Serve one owner until it goes away."""
    settings = WorkerSettings.from_json(arguments[0])
    limit_this_process(settings.max_memory_bytes)
    decoder = load_decoder(settings.decoder)
    squash(
        np.zeros((1, 1, 3), np.uint8), settings.preprocess.filter
    )  # compile or load the kernels before any task
    with socket.socket(fileno=settings.socket_fd) as connection:
        connection.sendall(READY)
        try:
            answer_tasks(settings, connection, decoder)
        except (EOFError, ConnectionError):
            os._exit(0)  # the owner is gone; nothing here needs a tidy shutdown


if __name__ == "__main__":
    main(sys.argv[1:])
