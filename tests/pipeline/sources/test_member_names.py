"""How member names split, and which are refused."""

import pytest

from pipeline.sources.member_names import MAX_NAME_BYTES, split_name
from schemas.quarantine import Reason


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("000.jpg", "000", "jpg"),
        ("UP.JPG", "UP", "jpg"),
        ("photo.v1.final.jpg", "photo", "v1.final.jpg"),
        ("dir.with.dots/k1.txt", "dir.with.dots/k1", "txt"),
        ("./a/000.tar.gz", "./a/000", "tar.gz"),
        ("a..b/c.jpg", "a..b/c", "jpg"),
        ("ünïcødé 鍵.txt", "ünïcødé 鍵", "txt"),
        ("c:d.txt", "c:d", "txt"),
        ("_private_.txt", "_private_", "txt"),
        ("__x.txt", "__x", "txt"),
    ],
)
def test_key_ends_at_the_first_dot_of_the_base_name(name: str, key: str, extension: str) -> None:
    assert split_name(name.encode()) == (key, extension)


@pytest.mark.parametrize(
    "name",
    [
        b"/etc/passwd.jpg",
        b"../../etc/x.jpg",
        b"a/../../b.jpg",
        b"a\\..\\b.jpg",
        b"C:\\x.jpg",
        b"\\\\server\\x.jpg",
        b"a\nb.jpg",
        b"a\x7f.jpg",
        b"caf\xe9.jpg",
        b"",
        b"k" * MAX_NAME_BYTES + b".jpg",
    ],
)
def test_unsafe_names(name: bytes) -> None:
    reason, detail = split_name(name)
    assert reason is Reason.UNSAFE_MEMBER_NAME
    assert detail


@pytest.mark.parametrize(
    "name",
    [
        "noext",
        "a/noext",
        ".hidden.jpg",
        "a/.DS_Store",
        "._mac.jpg",
        "__MACOSX/x.jpg",
        "__meta__",
        "__m__/a.txt",
    ],
)
def test_junk_is_ignored(name: str) -> None:
    assert split_name(name.encode())[0] is Reason.MEMBER_IGNORED
