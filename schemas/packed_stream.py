"""The order in which training reads a packed folder, and batches of it for any number of ranks.

The whole state of reading is one integer: how many sequences were consumed. Position p is sequence
``p % num_sequences`` of epoch ``p // num_sequences``; the first epoch runs in stored order (which follows the
mixture's weights at every prefix), each later one in a permutation that is a pure function of (seed, epoch):
a Feistel network with cycle walking (Black and Rogaway 2002), so that a look-up costs no memory and no pass
over the data. The global batch therefore does not depend on the number of ranks, workers, or restarts.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from types import TracebackType
from typing import Self

from schemas.packed_folder import PackedFolder
from schemas.packed_shard import PackedSequence

FEISTEL_ROUNDS = 6


def permute(index: int, length: int, key: bytes) -> int:
    """Image of ``index`` under a pseudo-random permutation of ``range(length)`` chosen by ``key``.

    The network works on the smallest even number of bits that holds ``length``; results outside the range
    are sent through again, fewer than four times on average.
    """
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}")
    half_bits = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for round_number in range(FEISTEL_ROUNDS):
            message = round_number.to_bytes(1, "little") + right.to_bytes(8, "little")
            digest = blake2b(message, key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << half_bits | right
        if index < length:
            return index


def stored_index(position: int, num_sequences: int, seed: int) -> int:
    """Which stored sequence stands at ``position`` of the endless stream."""
    epoch, index = divmod(position, num_sequences)
    if epoch == 0:
        return index
    return permute(index, num_sequences, f"{seed} {epoch}".encode())


class PackedStream:
    """Endless batches of one rank, read ahead by a thread; its state is one integer.

    Step s of the run takes positions ``s * global_batch .. (s + 1) * global_batch``; rank r of R takes the
    r-th of R equal slices of them. Restarting with another number of ranks continues the same data.

    Args:
        global_batch: sequences of one step over all ranks; a multiple of ``world_size``.
        consumed: sequences that all ranks together have consumed; a multiple of ``global_batch``.
        prefetch: batches to read ahead.

    Raises:
        ValueError: if the numbers do not divide.
    """

    def __init__(
        self,
        folder: PackedFolder,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        consumed: int = 0,
        prefetch: int = 4,
    ) -> None:
        if global_batch <= 0 or global_batch % world_size:
            raise ValueError(f"global_batch {global_batch} must be a positive multiple of {world_size} ranks")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
        if consumed < 0 or consumed % global_batch:
            raise ValueError(f"consumed {consumed} must be a multiple of global_batch {global_batch}")
        self.consumed = consumed
        self._folder, self._seed = folder, seed
        self._global_batch, self._rank, self._share = global_batch, rank, global_batch // world_size
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(1, "packed-stream")
        self._pending: deque[Future[list[PackedSequence]]] = deque()
        self._next_to_read = consumed

    def positions(self, consumed: int) -> range:
        """Positions of this rank in the step that starts after ``consumed`` sequences."""
        start = consumed + self._rank * self._share
        return range(start, start + self._share)

    def __iter__(self) -> Iterator[list[PackedSequence]]:
        return self

    def __next__(self) -> list[PackedSequence]:
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._pool.submit(self._read, self.positions(self._next_to_read)))
            self._next_to_read += self._global_batch
        batch = self._pending.popleft().result()
        self.consumed += self._global_batch
        return batch

    def _read(self, positions: range) -> list[PackedSequence]:
        return [self._folder[stored_index(position, len(self._folder), self._seed)] for position in positions]

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
