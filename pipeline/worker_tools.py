"""What one worker process needs to tokenize: the model, the decode processes, the output folder."""

import contextlib
import gc
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.batching_encoder import BatchingEncoder, ImageEncoder
from pipeline.decode import DecodeTask, TaskKind
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.encode_shard import ReadDocuments, ShardEncoder, ShardSettings
from pipeline.null_encoder import NullEncoder, null_fingerprint
from pipeline.shared_decoder import SharedDecoder
from pipeline.sources.records import RawImage, RawVideo
from pipeline.storage import open_folder
from schemas.fingerprint import Fingerprint
from tokenizer.preprocess import PreprocessConfig

NULL_TOKENIZER = "null"
PLACES_PER_PROCESS = 64
"""Of the decode pool: two batches, so that pictures wait in its own queue and not before it."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which tokenizer, and how it runs."""

    tokenizer: str
    """Preset, path, hub id, or ``null``."""
    precision: str = "fp32"
    batch_size: int = 32
    device: str = "cpu"
    compiled: bool = False
    """By `torch.compile`."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Everything a worker is told when it starts; it travels to other machines."""

    read: ReadDocuments
    settings: ShardSettings
    encoder: EncoderConfig
    output: str
    num_decode_workers: int | None = 2
    """None: as many as the worker has cores where it stands."""
    decode_timeout_s: float = 30.0
    decoder: str = "pipeline.decode:decode_task"
    frames_per_task: int = 1
    video_options: str = ""
    """Which frames of a clip: `video_frames.FrameSampling` as JSON."""
    num_threads: int = 0
    """Threads of the model on a CPU; 0 leaves it to the library."""
    folder: str = "."
    """Where relative names of source shards and tokenizers begin: the working directory of the driver."""


@dataclass(frozen=True)
class WorkerTools:
    """What a worker works with."""

    shards: ShardEncoder
    decoder: SharedDecoder


class TokenizerMismatchError(RuntimeError):
    """A worker's tokenizer is not the one that the run was begun with."""


def tokenizer_fingerprint(config: EncoderConfig, *, local_files_only: bool = False) -> Fingerprint:
    """What decides the codes, without loading the model onto a device.

    Raises:
        FileNotFoundError, ValueError: the tokenizer is not there or does not fit.
    """
    if config.tokenizer == NULL_TOKENIZER:
        return null_fingerprint(config.preprocess.fingerprint_components())
    from pipeline.seed_encoder import seed_fingerprint

    return seed_fingerprint(config, local_files_only=local_files_only)


def load_encoder(config: EncoderConfig) -> ImageEncoder:
    """The tokenizer, ready on its device."""
    if config.tokenizer == NULL_TOKENIZER:
        return NullEncoder(config.preprocess.fingerprint_components())
    from pipeline.seed_encoder import SeedEncoder

    return SeedEncoder(config)


@contextmanager
def open_tools(setup: WorkerSetup) -> Iterator[WorkerTools]:
    """Load the model and start decoding processes; all of it ends with the block.

    Raises:
        TokenizerMismatchError: if this machine's tokenizer differs from the driver's.
    """
    encoder = load_encoder(setup.encoder)
    if differences := setup.settings.fingerprint.differences(encoder.fingerprint):
        raise TokenizerMismatchError(
            "this worker's tokenizer is not the one the run was begun with (driver here, worker there): "
            + "; ".join(differences)
        )
    with contextlib.ExitStack() as stack:
        batching = stack.enter_context(
            BatchingEncoder(
                encoder, setup.encoder.batch_size, batches_in_flight=getattr(encoder, "batches_in_flight", 1)
            )
        )
        assert setup.num_decode_workers is not None, "whoever opens the tools knows the cores"
        config = decode_pool_config(setup, setup.num_decode_workers)
        decoder = SharedDecoder(stack.enter_context(DecodePool(config)))

        def decode(
            segment: RawImage | RawVideo,
        ) -> "Future[Any]":  # `Frames`, but futures are invariant
            if isinstance(segment, RawVideo):
                frames, options = setup.frames_per_task, setup.video_options
                return decoder.submit(DecodeTask(segment.data, TaskKind.VIDEO, frames, options))
            return decoder.submit(DecodeTask(segment.data))

        shards = ShardEncoder(
            read=setup.read,
            decode=decode,
            batching=batching,
            folder=open_folder(setup.output),
            settings=setup.settings,
        )
        stack.enter_context(rare_garbage_collection())
        yield WorkerTools(shards, decoder)


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Let Python search less for cyclic garbage, and not among what was made so far (modules, the model).

    Images under way are many short-lived objects, of which 700 set off a search: every 35 pictures one, and
    now and then one over all of torch, some 50 ms in which no thread of the process runs.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000, *thresholds[1:])
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def decode_pool_config(setup: WorkerSetup, num_workers: int) -> DecodePoolConfig:
    """Decoding as the run wants it, with so many processes."""
    return DecodePoolConfig(
        num_workers=num_workers,
        max_in_flight=PLACES_PER_PROCESS * max(1, num_workers),
        timeout_s=setup.decode_timeout_s,
        decoder=setup.decoder,
        frames_per_task=setup.frames_per_task,
        preprocess=setup.encoder.preprocess,
    )
