"""The process that decodes: `python -m pipeline.decode_worker SETTINGS`, started by `pipeline.decode_pool`.

One socket carries the order of tasks in and short replies out. Bytes and pixels go through memory that only
this worker and its owner share: counters of the tasks begun and sent, slots for the bytes of tasks, used in
turn, and places for frames, of which each task names one. A worker that runs wild can spoil what it decodes
and nothing else, and nothing that it says is ever unpickled.

It ends by itself: at the end of the socket (the owner closed it or died, however it died), and by SIGALRM
when a task takes longer than its limit, even when the decoder never returns to Python.
"""

import itertools
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode import Decoder, DecodeTask, TaskKind, load_decoder, run_decoder
from schemas.quarantine import RefusedError
from tokenizer.preprocess import PreprocessConfig
from tokenizer.resize import IMAGE_SIZE, squash

FRAME_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
COUNTER_BYTES = 4096  # one page
INPUT_BYTES = 2**19  # larger files go through the socket; web pictures are 20 to 400 kB

KINDS = list(TaskKind)
KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
TASK_HEADER = struct.Struct("<BHIQI")  # index of the kind, frames wanted, bytes of options and of data, place
REPLY_HEADER = struct.Struct("<IHI")  # place, frames in it (0: refused), bytes of JSON that follow
READY = b"ready"
REPLY_DELAY_S = 0.05
"""Replies wait for each other: waking the owner costs up to 100 us of processor time.

Those that wait when a task hangs or crashes come late or are lost: at most 50 ms of work, which the successor
does again (decoding has no effect but its result)."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is told on its command line, as JSON."""

    socket_fd: int
    memory_fd: int
    num_slots: int
    num_places: int
    frames_per_place: int
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


class WorkerMemory:
    """What an owner and its worker share: counters of tasks, slots for bytes, places for frames."""

    def __init__(self, fd: int, num_slots: int, num_places: int, frames_per_place: int) -> None:
        place_bytes = frames_per_place * FRAME_BYTES
        memory = mmap.mmap(fd, self.num_bytes(num_slots, num_places, frames_per_place))
        self.num_begun = np.frombuffer(memory, np.int64, 1)
        self.num_sent = np.frombuffer(memory, np.int64, 1, offset=8)
        view = memoryview(memory)[COUNTER_BYTES:]
        self.inputs = [view[index * INPUT_BYTES :][:INPUT_BYTES] for index in range(num_slots)]
        view = view[num_slots * INPUT_BYTES :]
        self.frames = [view[index * place_bytes :][:place_bytes] for index in range(num_places)]

    @staticmethod
    def num_bytes(num_slots: int, num_places: int, frames_per_place: int) -> int:
        return COUNTER_BYTES + num_slots * INPUT_BYTES + num_places * frames_per_place * FRAME_BYTES


def pack_task(task: DecodeTask, slot_input: memoryview, place: int) -> bytes:
    """Put the task's bytes into its slot; returns the message, which carries bytes that do not fit there."""
    num_bytes, options = len(task.data), task.options.encode()
    header = TASK_HEADER.pack(KIND_NUMBERS[task.kind], task.num_frames, len(options), num_bytes, place)
    if num_bytes > INPUT_BYTES:
        return header + options + task.data
    slot_input[:num_bytes] = task.data
    return header + options


def unpack_task(stream: BufferedReader, slot_input: memoryview) -> tuple[DecodeTask, int]:
    """The worker's side of `pack_task`: the task and its place. Raises EOFError."""
    header = TASK_HEADER.unpack(read_exactly(stream, TASK_HEADER.size))
    kind, num_frames, options_bytes, num_bytes, place = header
    options = read_exactly(stream, options_bytes).decode()
    data = read_exactly(stream, num_bytes) if num_bytes > INPUT_BYTES else bytes(slot_input[:num_bytes])
    return DecodeTask(data, KINDS[kind], num_frames, options), place


def pack_reply(place: int, num_frames: int, body: object) -> bytes:
    """The message of `num_frames` frames in the place (none: a refusal); a picture has no body."""
    text = json.dumps(body).encode() if body else b""
    return REPLY_HEADER.pack(place, num_frames, len(text)) + text


def unpack_reply(data: bytearray) -> tuple[int, int, Any] | None:
    """Place, number of frames and body of the first reply, which is removed; None while it is incomplete."""
    if len(data) < REPLY_HEADER.size:
        return None
    place, num_frames, num_bytes = REPLY_HEADER.unpack_from(data)
    end = REPLY_HEADER.size + num_bytes
    if len(data) < end:
        return None
    body = json.loads(data[REPLY_HEADER.size : end]) if num_bytes else {}
    del data[:end]
    return place, num_frames, body


def read_exactly(stream: BufferedReader, num_bytes: int) -> bytes:
    """Raises EOFError when the other side is gone before that."""
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


def answer_tasks(settings: WorkerSettings, connection: socket.socket, decoder: Decoder) -> None:
    """Decode until the socket ends (EOFError)."""
    memory = WorkerMemory(
        settings.memory_fd, settings.num_slots, settings.num_places, settings.frames_per_place
    )
    stream = connection.makefile("rb")
    replies: list[bytes] = []
    last_sent_s = time.monotonic()
    for slot in itertools.cycle(range(settings.num_slots)):
        is_idle = memory.num_begun[0] == memory.num_sent[0]
        has_waited = time.monotonic() - last_sent_s > REPLY_DELAY_S
        if is_idle or has_waited or len(replies) >= settings.num_slots / 2:
            connection.sendall(b"".join(replies))
            replies.clear()
            last_sent_s = time.monotonic()
        if not stream.peek(1):  # waits for a task
            raise EOFError
        memory.num_begun[0] += 1
        task, place = unpack_task(stream, memory.inputs[slot])
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)
        replies.append(decode_into(memory, place, task, decoder, settings.preprocess))
        signal.setitimer(signal.ITIMER_REAL, 0)


def decode_into(
    memory: WorkerMemory, place: int, task: DecodeTask, decoder: Decoder, config: PreprocessConfig
) -> bytes:
    """Decode one task into its place; returns the reply."""
    try:
        frames = run_decoder(decoder, task, config)
    except RefusedError as error:
        return pack_reply(place, 0, {"reason": error.reason, "detail": error.detail})
    pixels = np.ascontiguousarray(frames.pixels)
    memory.frames[place][: pixels.nbytes] = pixels.data.cast("B")
    if not frames.times_s and not frames.decoder:  # a picture
        return pack_reply(place, len(pixels), {})
    return pack_reply(place, len(pixels), {"times_s": frames.times_s, "decoder": frames.decoder})


def limit_this_process(max_memory_bytes: int) -> None:
    """Bound its memory, offer it first to the kernel's out-of-memory killer, leave Ctrl-C to the owner.

    So too the signals that end a whole process group (a preempted job, a closed terminal): whether there is
    more to decode is the owner's to say, and the end of the socket says it. No core dumps: a corpus may crash
    it often.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
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
