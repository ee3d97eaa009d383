"""The elements of a JSON array as bytes, one at a time: LLaVA publishes its data as one array of 1 GB.

The array may be a field of an object, ``{"data": [...]}``, if nothing but short fields stands before it.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, Unit

CHUNK_BYTES = 1024**2
_BEGIN = re.compile(rb"\[\s*(?:[{\]]|\Z)")
_LIST_NAMES = rb"(?:annotations|data|examples|items|rows|samples|train)"
_SHORT_FIELD = rb'"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^\s"\[\]{},]+)\s*,\s*'
_WRAPPER = re.compile(
    rb"\{\s*(?:" + _SHORT_FIELD + rb")*\"" + _LIST_NAMES + rb'"\s*:\s*(?=\[\s*(?:[{\]]|\Z))', re.DOTALL
)
_INSIDE_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
"""Up to the end of the string, that of the chunk, or a backslash that ends the chunk."""
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TO_SIGN_IN_ARRAY = re.compile(rb'[^"\[\]{},]*(?:' + _STRING + rb'[^"\[\]{},]*){0,1000}', re.DOTALL)
_TO_SIGN_IN_ELEMENT = re.compile(rb'[^"\[\]{}]*(?:' + _STRING + rb'[^"\[\]{}]*){0,1000}', re.DOTALL)
"""Up to the next sign that matters, behind whole strings, so many that they need little memory. Possessive
quantifiers would say the same in one match, but in Python 3.11.2 they match something else.
"""


def begins_array(head: bytes) -> bool:
    """Whether a file that begins like this, white space aside, is an array of objects, and not JSON lines."""
    return _BEGIN.match(head) is not None


def length_before_array(head: bytes) -> int:
    """Bytes in front of the list of an object that wraps one; 0 if a file that begins like this has none."""
    match = _WRAPPER.match(head)
    return match.end() if match else 0


def read_json_array(
    stream: BinaryIO, source: str, max_element_bytes: int, is_wrapped: bool = False
) -> Iterator[TarSample | QuarantineRecord]:
    """Samples of an array, keyed by position (from 0); whether an element is sound is for others to say.

    An element longer than ``max_element_bytes`` is refused and passed over without being held in memory.
    Where the file ends inside an element that one is refused, and a record of unit ``shard`` says that the
    file is cut; another one, that something follows the end of the array.

    Args:
        stream: begins with the array.
        source: name of the file in the records.
        max_element_bytes: the limit.
        is_wrapped: whether a ``}`` follows the array.
    """
    array = _Array(stream, max_element_bytes, b"}" if is_wrapped else b"")
    for number, (element, offset) in enumerate(array.elements()):
        fault = None
        if len(element) > max_element_bytes:
            limit = f"an element of more than {max_element_bytes} bytes (--chats.max-document-bytes)"
            fault = Reason.METADATA_TOO_LARGE, limit
        elif array.is_cut:
            fault = Reason.METADATA_INVALID_JSON, "the file ends inside this element"
        key = f"{number:09d}"
        if fault is None:
            yield TarSample(key, {"json": element.strip()}, offset)
        else:
            yield QuarantineRecord(source, key, Unit.SAMPLE, *fault, len(element))
    if array.is_cut:
        detail = "the file ends before its JSON array does"
        yield QuarantineRecord(source, "", Unit.SHARD, Reason.TAR_TRUNCATED, detail)
    elif array.has_more:
        detail = "something follows the end of the JSON array; it was not read"
        yield QuarantineRecord(source, "", Unit.SHARD, Reason.TAR_CORRUPT, detail)


class _Array:
    """Splits a stream at the commas that stand neither in a string nor in an inner bracket."""

    def __init__(self, stream: BinaryIO, max_element_bytes: int, closing: bytes) -> None:
        self._stream = stream
        self._closing = closing
        self._max_bytes = max_element_bytes
        self._depth = 0
        self._is_string = self._is_escaped = False
        self.is_cut = False
        """The stream ended before the array; the last element is the beginning of one."""
        self.has_more = False
        """Something but white space follows the end of the array."""

    def elements(self) -> Iterator[tuple[bytes, int]]:
        """(element, where it begins); of one that is too long the first ``max_element_bytes + 1`` bytes."""
        element, begin, offset = bytearray(), 0, 0
        while chunk := self._stream.read(CHUNK_BYTES):
            kept = 0
            for cut in self._cuts(chunk):
                _extend(element, chunk[kept:cut], self._max_bytes + 1)
                kept = cut + 1
                if begin and (self._depth or element.strip()):
                    yield bytes(element), begin
                element.clear()
                begin = offset + kept
            if begin and not self._depth:
                self._read_rest(chunk[kept:])
                return
            _extend(element, chunk[kept:], self._max_bytes + 1)
            offset += len(chunk)
        self.is_cut = True
        if element.strip():
            yield bytes(element), begin

    def _read_rest(self, rest: bytes) -> None:
        """What follows the array: white space, and the end of the object around it."""
        closing = self._closing
        while not self.has_more:
            rest = rest.strip()
            if rest and closing:
                rest, closing = rest.removeprefix(closing), b""
            self.has_more = bool(rest.strip())
            if not (rest := self._stream.read(CHUNK_BYTES)):
                break
        self.is_cut = bool(closing)

    def _cuts(self, chunk: bytes) -> Iterator[int]:
        """Places in the next chunk where the array begins, has a comma, or ends."""
        place, self._is_escaped = int(self._is_escaped), False
        while place < len(chunk):
            if self._is_string:
                place = _INSIDE_STRING.match(chunk, place).end()  # type: ignore[union-attr]
                if place < len(chunk):
                    self._is_string = self._is_escaped = chunk[place] == ord("\\")
                place += 1
                continue
            to_sign = _TO_SIGN_IN_ARRAY if self._depth == 1 else _TO_SIGN_IN_ELEMENT
            place = to_sign.match(chunk, place).end()  # type: ignore[union-attr]
            sign = chunk[place : place + 1]
            if not sign:
                return
            place += 1
            self._is_string = sign == b'"'
            depth_before = self._depth
            self._depth += (sign in b"[{") - (sign in b"]}")
            if sign == b"," or {depth_before, self._depth} == {0, 1}:
                yield place - 1
                if not self._depth:
                    return


def _extend(element: bytearray, piece: bytes, max_bytes: int) -> None:
    element += piece[: max(0, max_bytes - len(element))]
