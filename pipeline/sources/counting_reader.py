"""Sequential reads of a stream that may give less than it is asked for, with the offset kept."""

from typing import BinaryIO

_READ_BYTES = 16 * 1024 * 1024
"""Most that one read asks for: what a header that lies about its size can make us allocate in vain."""
_SKIP_BYTES = 1024 * 1024


class CountingReader:
    """Reads a binary stream to its end, at most 16 MiB at once; ``head``: what was read of it before."""

    def __init__(self, stream: BinaryIO, head: bytes = b"") -> None:
        self._read = stream.read
        self._head = head
        self.offset = 0

    def read(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end of the stream."""
        if self._head or size > _READ_BYTES:
            return self._read_pieces(size)
        data = self._read(size)
        self.offset += len(data)
        if len(data) < size and data:  # a raw stream may give less than it has
            data += self._read_pieces(size - len(data))
        return data

    def skip(self, size: int) -> int:
        """Pass over up to ``size`` bytes; returns how many there were."""
        skipped = 0
        while skipped < size:
            piece = self.read(min(size - skipped, _SKIP_BYTES))
            if not piece:
                break
            skipped += len(piece)
        return skipped

    def _read_pieces(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            piece, self._head = self._head[:size], self._head[size:]
            if not piece:
                piece = self._read(min(size, _READ_BYTES))
            if not piece:
                break
            self.offset += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)
