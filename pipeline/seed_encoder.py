"""The SEED tokenizer as the engine runs it: batches go up and codes come down while the model computes.

On CUDA two batches are under way. Each has its own pinned host buffer; upload, model and download are queued
on one stream without waiting, so that the next is filled and queued while this one is computed. On a
CPU a batch is computed when it is started.
"""

import numpy as np
import torch

from pipeline.batching_encoder import FinishBatch
from pipeline.worker_tools import EncoderConfig
from schemas.fingerprint import Fingerprint
from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE
from tokenizer.checkpoint import load_model, load_tokenizer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.resize import IMAGE_SIZE
from tokenizer.seed import codes_fingerprint

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
            codes = self._tokenizer.launch(buffer).to(torch.uint16).numpy()
            return lambda: codes
        return self._start_on_cuda(buffer)

    def _start_on_cuda(self, buffer: torch.Tensor) -> FinishBatch:
        on_device = buffer.to(self._tokenizer.device, non_blocking=True)
        codes = self._tokenizer.launch(on_device)
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


def seed_fingerprint(config: EncoderConfig) -> Fingerprint:
    """What decides the codes of a SEED tokenizer.

    Raises:
        FileNotFoundError, ValueError: the tokenizer is not there or does not fit.
    """
    model, digest = load_model(config.tokenizer)
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
