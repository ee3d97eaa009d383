"""The ids of a packed shard straight from the file's pages, without reading or copying.

The ids column is required, fixed-size, plain and uncompressed, one page per row group: so its values stand in
the file as one run of bytes, and a row of ids is a slice of the memory-mapped file. Where in the column chunk
the page begins is told by its header, three Thrift integers of which are checked.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.packed_shard import PackedShardError, PackedShardFooter

_DATA_PAGE = 0
_INT_FIELD = 0x15
"""Compact Thrift: the next field, of type i32."""


class IdMap:
    """One memory-mapped packed shard; needs no file descriptor, and lives as long as a view of it."""

    def __init__(self, path: str) -> None:
        self._path = path
        with pa.memory_map(path) as file:  # buffers keep the mapping; Python's mmap would keep a descriptor
            self._map = memoryview(file.read_buffer()).cast("B")

    def group(self, metadata: pq.FileMetaData, group: int, footer: PackedShardFooter) -> NDArray[Any]:
        """(rows, seq_length) ids of a row group, a view of the file.

        Raises:
            PackedShardError: if the page is not laid out as the format says.
        """
        chunk = metadata.row_group(group).column(0)
        num_bytes = chunk.num_values * footer.seq_length * footer.id_dtype.itemsize
        start = int(chunk.data_page_offset) + int(chunk.total_compressed_size) - num_bytes
        page_type, unpacked, packed = self._read_integers(int(chunk.data_page_offset))
        is_plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        if not is_plain or (page_type, unpacked, packed) != (_DATA_PAGE, num_bytes, num_bytes):
            raise PackedShardError(
                f"{self._path}: row group {group}: ids are not one plain uncompressed page; was the file"
                " written by another program? `seed-pack build` writes it as the format says"
            )
        count = num_bytes // footer.id_dtype.itemsize
        return np.frombuffer(self._map, footer.id_dtype, count, start).reshape(-1, footer.seq_length)

    def _read_integers(self, position: int) -> list[int]:
        """The first three fields of a page header: type, unpacked size, packed size."""
        values = []
        for _ in range(3):
            if self._map[position] != _INT_FIELD:
                return [-1, -1, -1]
            position += 1
            value = shift = 0
            while True:
                byte = self._map[position]
                position += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            values.append((value >> 1) ^ -(value & 1))  # zigzag
        return values
