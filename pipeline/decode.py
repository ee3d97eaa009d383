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

from schemas.quarantine import Reason, RefusedError
from tokenizer.preprocess import PreprocessConfig, check_shape, load_image
from tokenizer.resize import IMAGE_SIZE, squash

FRAME_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


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


Decoder = Callable[[DecodeTask, PreprocessConfig], DecodedFrames]


def decode_image(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """One picture; of an animation the first."""
    return DecodedFrames(load_image(task.data, config)[None])


def decode_video(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """The sampled frames of one clip, each squashed like a picture."""
    from pipeline.video_frames import FrameSampling, sample_frames  # FFmpeg is loaded for videos only

    clip = sample_frames(task.data, FrameSampling(**json.loads(task.options or "{}")))
    height, width = clip.frames[0].shape[:2]
    check_shape(width, height, config)
    squashed = {id(frame): squash(frame, config.filter) for frame in clip.frames}  # repeated frames once
    pixels = np.stack([squashed[id(frame)] for frame in clip.frames])
    return DecodedFrames(pixels, clip.times_s, clip.decoder)


DECODERS: Mapping[TaskKind, Decoder] = {TaskKind.IMAGE: decode_image, TaskKind.VIDEO: decode_video}


def decode_task(task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Decode by kind. Raises RefusedError."""
    return DECODERS[task.kind](task, config)


def run_decoder(decoder: Decoder, task: DecodeTask, config: PreprocessConfig) -> DecodedFrames:
    """Call a decoder; whatever else it raises than RefusedError becomes the refusal of this one task.

    So does what is no frames: in a place in memory it would be seen together with those of another picture.
    """
    try:
        frames = decoder(task, config)
        _check_frames(frames.pixels, task.num_frames)
        return frames
    except RefusedError:
        raise
    except Exception as error:  # a fault of the decoder on these bytes: recorded under its own reason
        raise RefusedError(Reason.DECODER_CRASHED, f"{type(error).__name__}: {error}") from error


def _check_frames(pixels: NDArray[np.uint8], num_wanted: int) -> None:
    is_sound = pixels.dtype == np.uint8 and pixels.shape[1:] == FRAME_SHAPE
    if not is_sound or not 1 <= len(pixels) <= num_wanted:
        raise ValueError(f"the decoder gave {pixels.dtype} {pixels.shape} for {num_wanted} frames")


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
