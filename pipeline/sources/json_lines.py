"""JSON lines as samples: one JSON object a line, images as files below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.sources.records import RawImage
from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz")
"""Files of JSON lines or of one array; which of the two is told by content."""
MAX_IMAGE_BYTES = 256 * 1024**2
"""A larger file is no picture that training wants (image_too_large); the same as of a member of a tar."""


def read_json_lines(
    stream: BinaryIO, source: str, max_line_bytes: int
) -> Iterator[TarSample | QuarantineRecord]:
    """Samples of a JSON lines file, keyed by line number (from 0); empty lines count but are no samples.

    A line longer than ``max_line_bytes`` is refused and passed over without being held in memory.
    """
    offset = 0
    for number, line in enumerate(_bounded_lines(stream, max_line_bytes)):
        key = f"{number:09d}"
        if len(line) > max_line_bytes:
            detail = f"a line of more than {max_line_bytes} bytes (--chats.max-document-bytes)"
            yield QuarantineRecord(source, key, Unit.SAMPLE, Reason.METADATA_TOO_LARGE, detail, len(line))
        elif line.strip():
            yield TarSample(key, {"json": line.strip()}, offset)
        offset += len(line)


def _bounded_lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """Lines; of one that is too long the first ``max_bytes + 1`` bytes."""
    while line := stream.readline(max_bytes + 1):
        yield line
        while line and not line.endswith(b"\n"):  # pass over the rest
            line = stream.readline(max_bytes + 1)


class FolderImages:
    """Finds the images that JSON files name.

    Args:
        folder: where relative paths begin; None: there are none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.resolve() if folder else None

    def __call__(self, name: str) -> RawImage:
        """The image; raises RefusedError (``doc_image_missing``) for anything outside the folder."""
        path = self._inside(name)
        try:
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise RefusedError(Reason.IMAGE_TOO_LARGE, f"{name[:80]!r} exceeds {MAX_IMAGE_BYTES} bytes")
            return RawImage(path.read_bytes(), path.suffix[1:])
        except OSError as error:
            raise RefusedError(
                Reason.DOC_IMAGE_MISSING, f"{name[:80]!r}: {os.strerror(error.errno or 0)}"
            ) from None

    def _inside(self, name: str) -> Path:
        if self._folder is None:
            raise RefusedError(
                Reason.DOC_IMAGE_MISSING, f"{name[:80]!r}: no folder of images was given (--images)"
            )
        try:
            path = (self._folder / name).resolve()
            is_inside = path.is_relative_to(self._folder) and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, a loop of links
            raise RefusedError(Reason.DOC_IMAGE_MISSING, f"{name[:80]!r}: {type(error).__name__}") from None
        if not is_inside:
            raise RefusedError(
                Reason.DOC_IMAGE_MISSING, f"{name[:80]!r} is no file below the folder of images"
            )
        return path
