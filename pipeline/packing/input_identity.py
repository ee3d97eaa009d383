"""What an input file holds, in a few reads, so that a build that goes on notices changed inputs.

Small files are hashed whole. Of larger ones: size, both ends, places evenly between, and of Parquet the first
bytes of every column chunk, where a token shard's page header stands with the CRC-32 of the page; the footer,
which knows the size of every page, is at the end. Dates do not count: a copy is the same input. What can go
unseen is a change within a large text file that keeps its length and misses all places looked at.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HASHED_WHOLE_BYTES = 1 << 20
END_BYTES = 1 << 16
NUM_PLACES, PLACE_BYTES = 64, 1024
PAGE_HEADER_BYTES = 64


def content_identity(path: Path) -> str:
    """Size and 64 bits of a hash, such as ``1,024 bytes, 0123456789abcdef``."""
    size, state = path.stat().st_size, hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        if size <= HASHED_WHOLE_BYTES:
            state.update(file.read())
        else:
            for offset, num_bytes in _places(path, size):
                file.seek(offset)
                state.update(file.read(num_bytes))
    return f"{size:,} bytes, {state.hexdigest()}"


def _places(path: Path, size: int) -> Iterator[tuple[int, int]]:
    yield 0, END_BYTES
    yield size - END_BYTES, END_BYTES
    for place in range(1, NUM_PLACES):
        yield place * size // NUM_PLACES, PLACE_BYTES
    if path.suffix == ".parquet":
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError):  # no Parquet: its reader says so, with the name of its source
            return
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                yield metadata.row_group(group).column(column).data_page_offset, PAGE_HEADER_BYTES
