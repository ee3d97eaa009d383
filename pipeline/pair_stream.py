"""Batches of training pairs from shards that are too many for memory: streamed, shuffled in a buffer, decoded
ahead.

Each rank reads its own shards, in an order drawn anew every epoch, without end. Which pairs stand in a batch
depends on seed, rank and step alone: a resumed run reads up to its step again, without decoding, and goes on
exactly. For pairs that cannot be used the next ones of the stream stand in, which also come in their own
turn: so no batch holds a pair twice, and what was refused shifts nothing.
"""

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

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
from schemas.quarantine import QuarantineRecord, Reason, Unit

logger = logging.getLogger(__name__)

DECODING_THREADS = 8
LOOK_AHEAD = 50
"""So many batches of the stream are searched for pairs that stand in for others."""


class _Placed(NamedTuple):
    """A document and where it is from."""

    shard: str
    document: RawDocument

    @property
    def place(self) -> tuple[str, str]:
        """What names the pair: shard and key."""
        return self.shard, self.document.key


class _Made(NamedTuple):
    """A batch, how many of its pairs stand in for others, and what was refused since the batch before, by
    reason."""

    batch: PairBatch
    num_replaced: int
    refused: Counter[str]


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
        self._unused: deque[_Placed] = deque()
        self._refused_in_reading: Counter[str] = Counter()
        self._next_step = 0
        self._ahead: tuple[int, Future[_Made]] | None = None
        self._last_step = -1
        self._num_pairs = self._num_replaced = 0
        self.refused: Counter[str] = Counter()
        """Pairs of this epoch that could not be used, by reason."""

    def batch(self, step: int) -> PairBatch:
        """Batch of ``step``; asked for in order it is ready, otherwise the stream is read up to it.

        Raises:
            ValueError: too few different pairs can be used.
        """
        if self._ahead is None or self._ahead[0] != step:
            if self._ahead is not None:
                self._ahead[1].result()
            self._ahead = (step, self._reader.submit(self._make, step))
        made = self._ahead[1].result()
        self._ahead = (step + 1, self._reader.submit(self._make, step + 1))
        self._count(step, made)
        return made.batch

    def figures(self) -> dict[str, float]:
        """``replaced_fraction``: of the pairs of this epoch so far, those that another stood in for."""
        return {"replaced_fraction": self._num_replaced / max(1, self._num_pairs)}

    def _count(self, step: int, made: _Made) -> None:
        """Add a batch to the counts of its epoch, and log them when it is over."""
        if step % self.steps_per_epoch == 0 or step != self._last_step + 1:
            self.refused.clear()
            self._num_pairs = self._num_replaced = 0
        self._last_step = step
        self.refused += made.refused
        self._num_pairs += self._batch_size
        self._num_replaced += made.num_replaced
        if (step + 1) % self.steps_per_epoch == 0 and (self.refused or self._num_replaced):
            reasons = " ".join(f"{reason}={count}" for reason, count in sorted(self.refused.items()))
            logger.warning(
                "epoch=%d rank=%d pairs=%d replaced=%d refused=%d %s",
                step // self.steps_per_epoch, self._rank, self._num_pairs, self._num_replaced,
                self.refused.total(), reasons,
            )  # fmt: skip

    def _make(self, step: int) -> _Made:
        if step < self._next_step:
            self._documents, self._next_step = self._shuffled(), 0
            self._unused.clear()
        if step > self._next_step:
            for _ in range((step - self._next_step) * self._batch_size):
                self._take()
            self._refused_in_reading.clear()
        self._next_step = step + 1
        found: dict[tuple[str, str], TrainingPair | Reason] = {}
        self._decode([self._take() for _ in range(self._batch_size)], found)
        refused = Counter(pair.value for pair in found.values() if isinstance(pair, Reason))
        num_replaced = self._batch_size - len(_usable(found))
        num_tried = 0
        while (num_missing := self._batch_size - len(_usable(found))) > 0:
            if num_tried >= LOOK_AHEAD * self._batch_size:
                raise ValueError(
                    f"step {step}: only {len(_usable(found))} different pairs for a batch of "
                    f"{self._batch_size} in {num_tried + self._batch_size} of rank {self._rank}, refused: "
                    f"{dict(refused)}; mend the shards, or lower batch_size"
                )
            self._decode(self._peek(num_tried, num_missing), found)
            num_tried += num_missing
        refused += self._refused_in_reading
        self._refused_in_reading.clear()
        pairs = _usable(found)
        batch = PairBatch(np.stack([pair.image for pair in pairs]), [pair.caption for pair in pairs])
        return _Made(batch, num_replaced, refused)

    def _take(self) -> _Placed:
        """The next document of the stream."""
        return self._unused.popleft() if self._unused else next(self._documents)

    def _peek(self, start: int, count: int) -> list[_Placed]:
        """Documents that come later in the stream, and stay there."""
        while len(self._unused) < start + count:
            self._unused.append(next(self._documents))
        return list(itertools.islice(self._unused, start, start + count))

    def _decode(
        self, documents: Sequence[_Placed], found: dict[tuple[str, str], TrainingPair | Reason]
    ) -> None:
        """Add pairs, or why there are none, by place; those that are there already are left."""
        fresh = {placed.place: placed.document for placed in documents if placed.place not in found}
        preprocess = self._data.preprocess
        made = self._decoders.map(lambda item: decoded_pair(item, preprocess, item.key), fresh.values())
        found.update(zip(fresh, made, strict=True))

    def _shuffled(self) -> Iterator[_Placed]:
        """Documents of this rank without end, through a buffer from which each is drawn at random."""
        rng = np.random.default_rng((self._seed, self._rank))
        buffer: list[_Placed] = []
        for document in self._in_order():
            buffer.append(document)
            if len(buffer) > self._data.shuffle_pairs:
                place = int(rng.integers(len(buffer)))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()

    def _in_order(self) -> Iterator[_Placed]:
        data = self._data
        for epoch in itertools.count():
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))
            num_found = 0
            for index in order[self._rank :: self._world_size]:
                shard = self._shards[index]
                for item in read_pairs(read_shard(shard), shard.name):
                    if isinstance(item, QuarantineRecord):
                        self._refused_in_reading[item.reason.value] += item.unit is not Unit.MEMBER
                    elif not is_held_out(
                        group_of(shard.name, item.key, data.group_pattern), data.held_out_fraction
                    ):
                        num_found += 1
                        yield _Placed(shard.name, item)
            if not num_found:
                raise ValueError(f"rank {self._rank}: its shards hold no pair for training")


def _usable(found: dict[tuple[str, str], TrainingPair | Reason]) -> list[TrainingPair]:
    return [pair for pair in found.values() if isinstance(pair, TrainingPair)]
