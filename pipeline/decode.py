"""One decode task: the bytes of a sample's image in, 224x224 RGB frames out.

The same function runs in the calling thread and in the processes of `pipeline.decode_pool`. No torch here.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from schemas.quarantine import Reason
from tokenizer.preprocess import ImageError, PreprocessConfig, check_shape, load_image
from tokenizer.resize import squash


class TaskKind(StrEnum):
    """What the bytes hold."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One unit of decoding: it succeeds or is refused as a whole."""

    data: bytes
    kind: TaskKind = TaskKind.IMAGE
    num_frames: int = 1
    """Frames wanted; 1 for an image."""
    options: str = ""
    """Settings of the kind, as JSON: of a video, the fields of `video_frames.FrameSampling`."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrames:
    """The pictures of one task, owned by whoever holds this object."""

    pixels: NDArray[np.uint8]
    """(num_frames, 224, 224, 3) RGB."""
    times_s: tuple[float, ...] = ()
    """Time of each frame within its clip; empty for an image."""
    decoder: str = ""
    """Videos only: what decoded it, with its version."""


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


def decode_video(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """The sampled frames of one clip, each squashed like a picture."""
    from pipeline.video_container import VideoError  # FFmpeg is loaded where there are videos only
    from pipeline.video_frames import FrameSampling, sample_frames

    try:
        clip = sample_frames(task.data, FrameSampling(**json.loads(task.options or "{}")))
        height, width = clip.frames[0].shape[:2]
        check_shape(width, height, config)
    except (VideoError, ImageError) as error:
        raise DecodeError(error.reason, error.detail) from error
    squashed = {id(frame): squash(frame, config.filter) for frame in clip.frames}  # repeated frames once
    pixels = np.stack([squashed[id(frame)] for frame in clip.frames])
    return DecodedFrames(pixels, clip.times_s, clip.decoder)


DECODERS: Mapping[TaskKind, Decoder] = {TaskKind.IMAGE: decode_image, TaskKind.VIDEO: decode_video}


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
