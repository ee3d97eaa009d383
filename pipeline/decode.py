"""One decode task: the bytes of a sample's image in, 224x224 RGB frames out.

The same function runs in the calling thread and in the processes of `pipeline.decode_pool`. No torch here.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from schemas.quarantine import Reason
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image


class TaskKind(StrEnum):
    """What the bytes hold."""

    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One unit of decoding: it succeeds or is refused as a whole."""

    data: bytes
    kind: TaskKind = TaskKind.IMAGE
    num_frames: int = 1
    """Frames wanted; 1 for an image."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrames:
    """The pictures of one task, owned by whoever holds this object."""

    pixels: NDArray[np.uint8]
    """(num_frames, 224, 224, 3) RGB."""
    times_s: tuple[float, ...] = ()
    """Time of each frame within its clip; empty for an image."""


class DecodeError(ValueError):
    """A task that was refused.

    Attributes:
        reason: why, from the closed list of the quarantine ledger.
        detail: one line for a human.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Decoder = Callable[[DecodeTask, PreprocessConfig], DecodedFrames]


def decode_image(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """One picture; of an animation the first."""
    try:
        return DecodedFrames(load_image(task.data, config)[None])
    except ImageError as error:
        raise DecodeError(error.reason, error.detail) from error


DECODERS: Mapping[TaskKind, Decoder] = {TaskKind.IMAGE: decode_image}


def decode_task(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Decode by kind. Raises DecodeError."""
    return DECODERS[task.kind](task, config)


def run_decoder(decoder: Decoder, task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Call a decoder; whatever else it raises than DecodeError becomes the refusal of this one task."""
    try:
        return decoder(task, config)
    except DecodeError:
        raise
    except Exception as error:  # a fault of the decoder on these bytes: recorded under its own reason
        raise DecodeError(Reason.DECODER_CRASHED, f"{type(error).__name__}: {error}") from error


def load_decoder(name: str) -> Decoder:
    """The decoder named `package.module:function`.

    Raises:
        ValueError: if there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        decoder: Decoder = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"decoder {name!r} must name an importable package.module:function: {error}"
        ) from error
    return decoder
