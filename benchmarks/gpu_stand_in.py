"""A model that takes a set time for a batch and no processor, as a GPU does: is it ever kept waiting?

Batches run one after the other, and the next is queued while one runs, as with the tokenizer on CUDA. Codes
are those of the null tokenizer.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from pipeline.batching_encoder import FinishBatch
from pipeline.null_encoder import NullEncoder
from pipeline.worker_tools import WorkerSetup, WorkerTools, open_tools


class GpuStandIn:
    """See ``batching_encoder.ImageEncoder``.

    Args:
        preprocessing: as of `NullEncoder`.
        share: of the rate of decoding alone, at which it runs.
    """

    batches_in_flight = 2  # as of `seed_encoder` on CUDA

    def __init__(self, preprocessing: dict[str, str], share: float) -> None:
        self._null = NullEncoder(preprocessing)
        self.fingerprint = self._null.fingerprint
        self._share = share
        self._batch_s = 0.0
        self._free_at_s = 0.0

    def set_rate(self, decode_rate: float, batch_size: int) -> float:
        """Run at its share of this rate from now on; returns that, in images/s."""
        rate = self._share * decode_rate
        self._batch_s = batch_size / rate
        return rate

    def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
        read_codes = self._null.start(images, batch_size)
        self._free_at_s = done_at_s = max(self._free_at_s, time.monotonic()) + self._batch_s

        def finish() -> np.ndarray:
            time.sleep(max(0.0, done_at_s - time.monotonic()))
            return read_codes()

        return finish


@contextmanager
def open_tools_with(stand_in: GpuStandIn, setup: WorkerSetup) -> Iterator[WorkerTools]:
    """The tools of a worker of the null tokenizer, with the stand-in for its model."""
    with patch("pipeline.worker_tools.load_encoder", lambda _: stand_in), open_tools(setup) as tools:
        yield tools
