"""Parts that img2dataset takes as arguments: pictures as they came, written in the order of the list."""

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer.image_file import ImageError, open_image

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
_NO_LIMIT = 1 << 62
NO_URL = "no URL"
"""What the table says of a row whose URL is null or empty; img2dataset has an error of Python's there."""
Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""What img2dataset expects of a resizer: bytes, width, height, original width and height, error."""


class OriginalBytes:
    """In the place of img2dataset's resizer: passes the bytes of a picture on, refuses what is none.

    The header decides, not the Content-Type of the answer: a JPEG sent as text/html is a picture, an error
    page sent as image/jpeg is not. Pixels are decoded when they are tokenized.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def __call__(self, stream: io.BytesIO, boxes: object = None) -> Resized:
        data = stream.read()
        try:
            with open_image(data, self._max_pixels) as image:
                width, height = image.size
        except ImageError as error:
            return None, None, None, None, None, error.reason.value  # one word, so that it can be counted
        return data, width, height, width, height, None


class OriginalsWriter:
    """In the place of img2dataset's WebDataset writer, with its arguments.

    Pictures come in the order in which their servers answered. They are kept in a spool file and put into the
    tar in the order of the list, so that the same answers give the same shard. Memory holds the metadata.
    """

    def __init__(
        self,
        shard_id: int,
        output_folder: str,
        save_caption: bool,
        oom_shard_count: int,
        schema: pa.Schema,
        encode_format: str,
    ) -> None:
        self._path = Path(output_folder) / f"{shard_id:0{oom_shard_count}d}"
        self._has_captions = save_caption
        self._schema = schema
        self._rows: dict[str, dict[str, Any]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._spool = tempfile.TemporaryFile(dir=output_folder)  # noqa: SIM115 - closed with the writer

    def write(self, data: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Take one row of the list, with its picture if it came."""
        self._rows[key] = meta if meta.get("url") else meta | {"error_message": NO_URL}
        if data is not None:
            self._places[key] = (self._spool.tell(), len(data))
            self._spool.write(data)

    def close(self) -> None:
        """Write the shard and the table."""
        with self._spool, tarfile.open(f"{self._path}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for key in sorted(self._places):
                offset, size = self._places[key]
                self._spool.seek(offset)
                self._add_sample(tar, key, self._spool.read(size))
        rows = [self._rows[key] for key in sorted(self._rows)]
        pq.write_table(pa.Table.from_pylist(rows, self._schema), f"{self._path}.parquet")

    def _add_sample(self, tar: tarfile.TarFile, key: str, data: bytes) -> None:
        meta = self._rows[key]
        add_member(tar, f"{key}.{suffix_of(data)}", data)
        add_member(tar, f"{key}.json", json.dumps(meta, indent=1, default=str).encode())
        if self._has_captions:
            caption = meta.get("caption")
            add_member(tar, f"{key}.txt", str("" if caption is None else caption).encode())


def suffix_of(data: bytes) -> str:
    """The suffix that the content of a picture has: ``jpg``, ``png``, ``webp`` ..."""
    with open_image(data, _NO_LIMIT) as image:  # it was checked when it came
        name = image.format or "image"
    return _SUFFIXES.get(name, name.lower())


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Write a file into a tar, with no time and no owner: the same bytes in every run."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
