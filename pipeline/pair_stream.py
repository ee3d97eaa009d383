"""Batches of training pairs from shards that are too many for memory: streamed, shuffled in a buffer, decoded
ahead.

Each rank reads its own shards, in an order drawn anew every epoch, without end. Which pairs stand in a batch
depends on seed, rank and step alone: a resumed run reads up to its step again, without decoding, and goes on
exactly.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.inputs import SourceShard
from pipeline.read_shard import read_shard
from pipeline.sources.pairs import read_pairs
from pipeline.sources.records import RawDocument
from pipeline.training_pairs import (
    PairBatch,
    PairDataConfig,
    TrainingPair,
    decoded_pair,
    group_of,
    is_held_out,
)

logger = logging.getLogger(__name__)

DECODING_THREADS = 8


class PairStream:
    """Endless batches of one rank; the next one is made while the last is used."""

    def __init__(
        self,
        shards: Sequence[SourceShard],
        data: PairDataConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Batches of ``batch_size`` from this rank's shards.

        Raises:
            ValueError: fewer shards than ranks, or ``data.pairs_per_epoch`` is less than one global batch.
        """
        if len(shards) < world_size:
            raise ValueError(f"{len(shards)} shards for {world_size} ranks: every rank needs one of its own")
        self.steps_per_epoch = data.pairs_per_epoch // (batch_size * world_size)
        if not self.steps_per_epoch:
            raise ValueError(
                f"data.pairs_per_epoch {data.pairs_per_epoch} is less than one batch of "
                f"{batch_size * world_size} over all ranks"
            )
        self._shards = shards
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._decoders = ThreadPoolExecutor(DECODING_THREADS, "pair-decoder")
        self._reader = ThreadPoolExecutor(1, "pair-reader")
        self._documents = self._shuffled()
        self._next_step = 0
        self._ahead: tuple[int, Future[PairBatch]] | None = None
        self.refused: Counter[str] = Counter()
        """Pairs whose picture or caption could not be used, by reason; others of their batch stand in."""

    def batch(self, step: int) -> PairBatch:
        """Batch of ``step``; asked for in order it is ready, otherwise the stream is read up to it."""
        if self._ahead is None or self._ahead[0] != step:
            if self._ahead is not None:
                self._ahead[1].result()
            self._ahead = (step, self._reader.submit(self._make, step))
        current = self._ahead[1].result()
        self._ahead = (step + 1, self._reader.submit(self._make, step + 1))
        return current

    def _make(self, step: int) -> PairBatch:
        if step < self._next_step:
            self._documents, self._next_step = self._shuffled(), 0
        for _ in range((step - self._next_step) * self._batch_size):
            next(self._documents)
        self._next_step = step + 1
        documents = list(itertools.islice(self._documents, self._batch_size))
        good = [pair for pair in self._decoders.map(self._decode, documents) if pair is not None]
        if not good:
            raise ValueError(
                f"step {step}: none of {self._batch_size} pairs can be used: {dict(self.refused)}"
            )
        filled = list(itertools.islice(itertools.cycle(good), self._batch_size))
        return PairBatch(np.stack([pair.image for pair in filled]), [pair.caption for pair in filled])

    def _decode(self, document: RawDocument) -> TrainingPair | None:
        pair = decoded_pair(document, self._data.preprocess, document.key)
        if isinstance(pair, TrainingPair):
            return pair
        self.refused[pair] += 1
        return None

    def _shuffled(self) -> Iterator[RawDocument]:
        """Documents of this rank without end, through a buffer from which each is drawn at random."""
        rng = np.random.default_rng((self._seed, self._rank))
        buffer: list[RawDocument] = []
        for document in self._in_order():
            buffer.append(document)
            if len(buffer) > self._data.shuffle_pairs:
                place = int(rng.integers(len(buffer)))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()

    def _in_order(self) -> Iterator[RawDocument]:
        data = self._data
        for epoch in itertools.count():
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))
            num_found = 0
            for index in order[self._rank :: self._world_size]:
                shard = self._shards[index]
                for item in read_pairs(read_shard(shard), shard.name):
                    if isinstance(item, RawDocument) and not is_held_out(
                        group_of(shard.name, item.key, data.group_pattern), data.held_out_fraction
                    ):
                        num_found += 1
                        yield item
            if not num_found:
                raise ValueError(f"rank {self._rank}: its shards hold no pair for training")
