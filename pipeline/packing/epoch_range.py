"""A part of one epoch of a source, as a range of the keys that its rows are shuffled by.

Keys are uniform, so a range of a third of them holds about a third of the rows, the same ones at any time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT_BITS = 20
WHOLE_EPOCH = 1 << UNIT_BITS
"""Units that the keys of an epoch are divided into; bounds of ranges are counted in them."""


@dataclass(frozen=True)
class EpochRange:
    """The rows of one epoch of a source whose keys lie from unit ``start`` to before unit ``stop``."""

    epoch: int
    start: int
    stop: int
    num_buckets: int
    """Equal ranges in turn that it is shuffled in."""

    def buckets(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(num_rows,) which bucket each key lies in; -1 outside the range."""
        units = keys >> np.uint64(64 - UNIT_BITS)
        is_inside = (units >= self.start) & (units < self.stop)
        low = keys >> np.uint64(32)
        offset = low - np.uint64(self.start << (32 - UNIT_BITS))
        span = np.uint64((self.stop - self.start) << (32 - UNIT_BITS))
        return np.where(is_inside, (offset * np.uint64(self.num_buckets) // span).astype(np.int64), -1)
