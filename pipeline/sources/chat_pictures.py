"""The pictures of one chat: data URIs, the image members of its sample, or files that a JSON file names."""

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.inputs import natural_key
from pipeline.sources.pairs import IMAGE_EXTENSIONS
from pipeline.sources.records import RawImage
from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

FindImage = Callable[[str], RawImage]
"""The image that a chat names; raises RefusedError."""


class ChatPictures:
    """Pictures by the names that a chat gives them.

    Args:
        sample: what the chat was read from.
        find_elsewhere: finds images that are no members of the sample, for JSON lines.
    """

    def __init__(self, sample: TarSample, find_elsewhere: FindImage | None) -> None:
        self._sample = sample
        self._find_elsewhere = find_elsewhere
        names = (name for name in sample.members if name.rpartition(".")[2] in IMAGE_EXTENSIONS)
        self._members = sorted(names, key=natural_key)
        self._shown: set[str] = set()

    def find(self, name: Any) -> RawImage:
        """The picture of this name. Raises RefusedError."""
        if not isinstance(name, str):
            raise RefusedError(Reason.DOC_SCHEMA_ERROR, f"an image is no string but {str(name)[:40]}")
        if name.startswith("data:"):
            return _from_data_uri(name)
        extension = name.lower()  # as the tar reader stores them
        if extension in self._sample.members and extension != "json":
            self._shown.add(extension)
            return RawImage(self._sample.members[extension], extension)
        if "://" in name:
            detail = f"{name[:80]!r} is an address, and nothing is fetched: download it, then name the file"
            raise RefusedError(Reason.DOC_IMAGE_MISSING, detail)
        if self._find_elsewhere is not None:
            return self._find_elsewhere(name)
        if extension in self._sample.refused:
            why = f"was refused: {self._sample.refused[extension]}"
        else:
            why = f"is no member of the sample: .{', .'.join(self._sample.members)}"
        raise RefusedError(Reason.DOC_IMAGE_MISSING, f"{name[:80]!r} {why}"[:300])

    def listed(self, names: Any, are_paths: bool = False) -> list[Any]:
        """Names of the pictures of a chat in order.

        Args:
            names: what the chat says: a name, a list of names, or nothing: then its image members, by number.
            are_paths: one name stands for the only image member, whatever it says: before the sample was put
                into a shard, it was a path.
        """
        if names is None or names in ("", []):
            return list(self._members)
        found = names if isinstance(names, list) else [names]
        return list(self._members) if are_paths and len(found) == len(self._members) == 1 else found

    def unshown(self, source: str) -> Iterator[QuarantineRecord]:
        """A note for each image member that the chat did not show."""
        for name in self._members:
            if name not in self._shown:
                detail, size = "no part of the chat shows it", len(self._sample.members[name])
                member = f"{self._sample.key}.{name}"
                yield QuarantineRecord(source, member, Unit.MEMBER, Reason.MEMBER_IGNORED, detail, size)


def _from_data_uri(uri: str) -> RawImage:
    header, comma, encoded = uri.partition(",")
    try:
        if not comma or not header.endswith(";base64"):
            raise ValueError("not base64")
        return RawImage(base64.b64decode(encoded, validate=True), header[len("data:image/") :].split(";")[0])
    except (binascii.Error, ValueError) as error:
        raise RefusedError(Reason.IMAGE_DECODE_ERROR, f"data URI: {error}") from None
