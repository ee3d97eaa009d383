"""Which sources count as the same: by size and both ends, from any storage."""

import hashlib
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.source_identity import END_BYTES, SourceIdentity, source_hash


@pytest.mark.parametrize("size", [0, 1, END_BYTES, END_BYTES + 1, 2 * END_BYTES, 3 * END_BYTES])
def test_the_same_bytes_have_the_same_hash_wherever_they_lie(size: int, tmp_path: Path) -> None:
    data = bytes(number % 251 for number in range(size))
    (tmp_path / "a.tar").write_bytes(data)
    with fsspec.open(f"memory://identity/{size}.tar", "wb") as file:
        file.write(data)
    local = source_hash(str(tmp_path / "a.tar"), size)
    assert local == source_hash(f"memory://identity/{size}.tar", size)
    for place in {0, size // 2, size - 1} if 0 < size <= 2 * END_BYTES else ():
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "a.tar").write_bytes(changed)
        assert source_hash(str(tmp_path / "a.tar"), size) != local


def test_a_store_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open("memory://identity/flaky.tar", "wb") as file:
        file.write(b"12345")
    answer, failures = MemoryFileSystem.cat_file, [ConnectionResetError("gone")]

    def cat_file(*arguments: object, **settings: object) -> bytes:
        if failures:
            raise failures.pop()
        return answer(*arguments, **settings)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert source_hash("memory://identity/flaky.tar", 5) == hashlib.sha256(b"12345").hexdigest()
    assert not failures


def test_what_is_not_known_is_no_difference() -> None:
    assert source_hash("a.tar", None) is None
    assert source_hash("https://h.example/a.tar", 5) is None
    old = SourceIdentity(5, None)  # of a version that kept no hash
    assert old.difference(SourceIdentity(5, "b")) is None
    assert old.difference(SourceIdentity(None, "b")) is None
    assert old.difference(SourceIdentity(6, "b")) == "5 bytes then, 6 now"
    assert (
        SourceIdentity(5, "a").difference(SourceIdentity(5, "b")) == "5 bytes then and now, but other content"
    )
