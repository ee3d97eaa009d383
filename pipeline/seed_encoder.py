"""The SEED tokenizer as the engine runs it: batches go up and codes come down while the model computes.

On CUDA two batches are under way. Each has its own pinned host buffer; upload, model and download are queued
on one stream without waiting, so that the next batch is filled and queued while this one is computed. The
model is one CUDA graph: launched one by one, each of its some 600 operations would wait for the interpreter,
which other threads keep busy. On a CPU a batch is computed when it is started.
"""

import logging
from collections.abc import Callable

import numpy as np
import torch

from pipeline.batching_encoder import FinishBatch
from pipeline.worker_tools import EncoderConfig
from schemas.fingerprint import Fingerprint
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE
from tokenizer.checkpoint import load_model, load_tokenizer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.resize import IMAGE_SIZE
from tokenizer.seed import SeedTokenizer, codes_fingerprint

logger = logging.getLogger(__name__)

CUDA_BATCHES_IN_FLIGHT = 2


class SeedEncoder:
    """A loaded SEED tokenizer."""

    def __init__(self, config: EncoderConfig) -> None:
        self._tokenizer = load_tokenizer(
            config.tokenizer,
            precision=config.precision,
            batch_size=config.batch_size,
            device=config.device,
            compiled=config.compiled,
        )
        self.fingerprint = make_fingerprint(self._tokenizer.weights_sha256, self._tokenizer.config, config)
        self._is_cuda = self._tokenizer.device.type == "cuda"
        self.batches_in_flight = CUDA_BATCHES_IN_FLIGHT if self._is_cuda else 1
        shape = (config.batch_size, *self._tokenizer.image_shape)
        self._host_buffers = [
            torch.zeros(shape, dtype=torch.uint8, pin_memory=self._is_cuda)
            for _ in range(self.batches_in_flight)
        ]
        self._num_started = 0
        self._launch = launch_on_cuda(self._tokenizer) if self._is_cuda else self._tokenizer.launch
        if config.compiled:  # now, and not while the first shards wait
            self.start([], config.batch_size)()

    def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
        """Queue one batch; see ``batching_encoder.ImageEncoder``."""
        # Round robin is safe: the caller finishes a batch before it starts one more than are in flight.
        buffer = self._host_buffers[self._num_started % len(self._host_buffers)]
        self._num_started += 1
        pixels = buffer.numpy()
        for index, image in enumerate(images):
            pixels[index] = image
        pixels[len(images) :] = 0
        if not self._is_cuda:
            codes = self._launch(buffer).to(torch.uint16).numpy()
            return lambda: codes
        return self._start_on_cuda(buffer)

    def _start_on_cuda(self, buffer: torch.Tensor) -> FinishBatch:
        codes = self._launch(buffer)
        on_host = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True)
        on_host.copy_(codes, non_blocking=True)
        # Blocking: a wait that spins takes a core from decoding. The stream is that of the tokenizer's
        # device, which need not be the current one of this thread.
        done = torch.cuda.Event(blocking=True)
        done.record(torch.cuda.current_stream(self._tokenizer.device))

        def finish() -> np.ndarray:
            done.synchronize()
            return on_host.to(torch.uint16).numpy()

        return finish


def launch_on_cuda(tokenizer: SeedTokenizer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Upload and ``launch`` of a batch in pinned memory; the next call overwrites the result."""
    try:
        return captured_launch(tokenizer)
    except RuntimeError as error:
        logger.warning("no CUDA graph, operations are launched one by one: %s", error)
        return lambda batch: tokenizer.launch(batch.to(tokenizer.device, non_blocking=True))


def captured_launch(tokenizer: SeedTokenizer) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same as one CUDA graph, checked against the plain launch.

    Raises:
        RuntimeError: if it cannot be captured, or gives other codes.
    """
    with torch.cuda.device(tokenizer.device):
        shape = (tokenizer.batch_size, *tokenizer.image_shape)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=tokenizer.device)
        expected = tokenizer.launch(images)
        # Capturing wants a first run on another stream: libraries set themselves up there.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            tokenizer.launch(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            codes = tokenizer.launch(images)

    def launch(batch: torch.Tensor) -> torch.Tensor:
        with torch.cuda.device(tokenizer.device):
            images.copy_(batch, non_blocking=True)
            graph.replay()
        return codes

    equal = float((launch(images.clone()) == expected).float().mean())
    if equal < 0.99:  # a few may differ: a library may choose other kernels while it is captured
        raise RuntimeError(f"its codes agree with the plain launch in {equal:.1%} only")
    return launch


def seed_fingerprint(config: EncoderConfig, *, local_files_only: bool = False) -> Fingerprint:
    """What decides the codes of a SEED tokenizer.

    Raises:
        FileNotFoundError, ValueError: the tokenizer is not there or does not fit.
    """
    model, digest = load_model(config.tokenizer, local_files_only=local_files_only)
    return make_fingerprint(digest, model.config, config)


def make_fingerprint(
    weights_sha256: str, architecture: SeedTokenizerConfig, config: EncoderConfig
) -> Fingerprint:
    """The components by name; the device and the batch size are no part of it.

    Raises:
        ValueError: if its codes do not fit token shards.
    """
    given = (architecture.num_query_token, architecture.n_embed, architecture.img_size)
    if given[0] != CODES_PER_IMAGE or given[1] > CODEBOOK_SIZE or given[2] != IMAGE_SIZE:
        raise ValueError(
            f"tokenizer {config.tokenizer} makes {given[0]} codes of {given[1]} from {given[2]} pixels a "
            f"side; token shards hold {CODES_PER_IMAGE} codes of {CODEBOOK_SIZE} from {IMAGE_SIZE}: choose a "
            "SEED tokenizer"
        )
    preprocessing = config.preprocess.fingerprint_components()
    return codes_fingerprint(
        weights_sha256, architecture, config.precision, preprocessing, compiled=config.compiled
    )
