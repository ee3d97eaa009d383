"""Input patterns: what they find, in which order, under which names, and how they fail."""

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.brace_patterns import expand_braces
from pipeline.inputs import expand_inputs, natural_key

SHARDS = ("part0/00000.tar", "part0/00001.tar.gz", "part1/00000.tar", "part10/2.tgz", "part10/10.tar.zst")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shards, with the files img2dataset leaves beside them; it is the working directory."""
    for name in (
        *SHARDS,
        "part0/00000.parquet",
        "part0/00000_stats.json",
        "part0/.hidden.tar",
        ".cache/9.tar",
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def names(*patterns: str) -> list[str]:
    return [shard.name for shard in expand_inputs(patterns)]


ALL_NAMES = ["part0/00000", "part0/00001", "part1/00000", "part10/2", "part10/10"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/part0/00000.tar", ["00000"]),
        ("data/part0/{00000..00001}.tar*", ["00000", "00001"]),
        ("data/part{0,1}/00000.tar", ["part0/00000", "part1/00000"]),
        ("data/*/*", ALL_NAMES),
        ("data/**/*.tar", ["part0/00000", "part1/00000"]),
        ("data/*/0000?.tar", ["part0/00000", "part1/00000"]),
        ("data/part[01]/*.tar", ["part0/00000", "part1/00000"]),
        ("data/**", ALL_NAMES),
        ("data", ALL_NAMES),
        ("data/", ALL_NAMES),
        ("data/part*", ALL_NAMES),
        ("data/part{0,10}", ["part0/00000", "part0/00001", "part10/2", "part10/10"]),
        ("./data/part1", ["00000"]),
        ("data/./part1/00000.tar", ["part1/00000"]),
        ("./data/./part0", ["part0/00000", "part0/00001"]),
    ],
)
def test_names_and_order(data: Path, pattern: str, expected: list[str]) -> None:
    shards = expand_inputs([pattern])
    assert [shard.name for shard in shards] == expected
    for shard in shards:
        assert shard.num_bytes == 5
        assert Path(shard.url).read_bytes() == b"12345"


def test_a_pattern_that_begins_with_a_wildcard(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    assert names("{part0,part1}/00000.tar") == ["part0/00000", "part1/00000"]
    assert names("*/00000.tar") == ["part0/00000", "part1/00000"]


def test_absolute_patterns_give_the_same_names(data: Path) -> None:
    assert names(f"{data}/*/*.tar") == names("data/*/*.tar")
    assert names(str(data)) == ALL_NAMES


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_urls_give_the_same_names(data: Path, scheme: str) -> None:
    root = f"file://{data}" if scheme == "file" else f"memory://{uuid.uuid4().hex}"
    if scheme == "memory":
        filesystem, path = fsspec.core.url_to_fs(root)
        for name in (*SHARDS, "part0/00000.parquet"):
            filesystem.pipe_file(f"{path}/{name}", b"12345")
    assert sorted(names(root)) == sorted(ALL_NAMES)
    assert names(f"{root}/part0/00000.tar") == ["00000"]
    assert names(f"{root}/part{{0,1}}/00000.tar") == ["part0/00000", "part1/00000"]
    assert names(f"{root}/*/*.tar") == ["part0/00000", "part1/00000"]
    assert names(f"{root}/./part0/00000.tar") == ["part0/00000"]
    assert names(f"{root}/part1*") == ["part1/00000", "part10/2", "part10/10"]
    (shard,) = expand_inputs([f"{root}/part10/2.tgz"])
    assert shard.url.startswith(f"{scheme}://")
    assert shard.num_bytes == 5
    with fsspec.open(shard.url) as stream:
        assert stream.read() == b"12345"
    for missing in ("part0/none.tar", "part0/none*.tar", "none"):
        with pytest.raises(ValueError, match="none"):
            expand_inputs([f"{root}/{missing}"])


def test_http_urls_are_taken_as_they_are() -> None:
    shards = expand_inputs(["https://h.example/a/{00..02}.tar?sig=x/yz"])
    assert [shard.name for shard in shards] == ["00", "01", "02"]
    assert shards[2].url == "https://h.example/a/02.tar?sig=x/yz"
    assert shards[2].num_bytes is None


def test_lists(data: Path) -> None:
    (data / "list.txt").write_text(
        "\ufeff# all of it\n\n data/part0/00000.tar \r\ndata/./part10/*.t*\n", encoding="utf-8"
    )
    assert names("@data/list.txt") == ["00000", "part10/2", "part10/10"]
    assert names("@data/list.txt", "data/./part1") == ["00000", "part10/2", "part10/10", "part1/00000"]


def test_a_directory_named_like_a_tar_is_a_shard_to_be_reported(data: Path) -> None:
    (data / "part0" / "x.tar").mkdir()
    (data / "part0" / "x.tar" / "inner.tar").write_bytes(b"")
    for pattern in ("data/part0/*.tar", "data/part0"):
        shard = expand_inputs([pattern])[-1]
        assert (shard.name, shard.num_bytes) == ("x", None)


def test_a_file_whose_name_looks_like_a_pattern(data: Path) -> None:
    (data / "a[1]{2}.tar").write_bytes(b"12345")
    assert names("data/a[1]{2}.tar") == ["a[1]{2}"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "empty"),
        ([""], "empty pattern"),
        (["data/none.tar"], "data/none.tar: no such file"),
        (["data/*.none"], "nothing matches"),
        (["absent/*.parquet"], "nothing matches"),
        (["data/part0/*.json"], "1 matched, none of them a tar; chats are read by"),
        (["data/part{0"], "unbalanced"),
        (["data/part{0}.tar"], "neither a range"),
        (["data/part{0..9..0}.tar"], "step 0"),
        (["data/{0..999999999999}.tar"], "more than 1000000"),
        (["data/{000..999}{0000..9999}.tar"], "more than 1000000"),
        (["@data/none.txt"], "none.txt: the list cannot be read"),
        (["data/part0/00000.tar", "data/part0/00000.tar"], "twice"),
        (["data/part0/00000.tar", "data/part1/00000.tar"], "'/./'"),
        (["data/part{0,1}/./*.tar"], "before the first wildcard"),
        (["s4://bucket/x.tar"], "s4"),
    ],
)
def test_errors_are_one_line_and_name_the_pattern(data: Path, patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        expand_inputs(patterns)
    assert "\n" not in str(error.value)


def test_collision_names_both_shards(data: Path) -> None:
    (data / "part0" / "00000.tar.zst").write_bytes(b"")
    with pytest.raises(ValueError, match=r"00000\.tar and .*00000\.tar\.zst"):
        expand_inputs(["data/part0"])


@pytest.mark.parametrize(("text", "message"), [("# nothing\n", "no entry"), ("@other.txt\n", "another list")])
def test_bad_lists(data: Path, text: str, message: str) -> None:
    (data / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        expand_inputs(["@data/list.txt"])


def test_order_does_not_depend_on_the_file_system(data: Path) -> None:
    for index in (10, 9, 100, 1):
        (data / f"s{index}.tar").write_bytes(b"")
    assert names("data/s*.tar") == ["s1", "s9", "s10", "s100"]


@given(st.lists(st.text("a1b20/ü", max_size=6)))
def test_natural_key_is_a_total_order(paths: list[str]) -> None:
    assert sorted(paths, key=natural_key) == sorted(sorted(paths, reverse=True), key=natural_key)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 7), st.integers(0, 5))
def test_ranges_count_like_range(first: int, last: int, step: int, width: int) -> None:
    found = expand_braces(f"{{{first:0{width}d}..{last:0{width}d}..{step}}}")
    steps = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    assert [int(number) for number in found] == list(steps)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{1..010}", ["001", "002", "003", "004", "005", "006", "007", "008", "009", "010"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("x{a,{1..2},b}y", ["xay", "x1y", "x2y", "xby"]),
        ("x{,y}", ["x", "xy"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_as_in_bash(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


def test_names_never_lead_out_of_the_output_folder(data: Path) -> None:
    with pytest.raises(ValueError, match="no output name"):
        expand_inputs(["data/part0/./../part1/00000.tar"])
    assert os.path.exists("data/part0/../part1/00000.tar")


@pytest.mark.parametrize("name", [".tmp-x.tar", "_failed/x.tar", "_logs/part/x.tar.gz", "a/.tmp-b/x.tar"])
def test_names_that_the_output_folder_would_hide_are_refused(data: Path, name: str) -> None:
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"kept for files of our own.*rename it"):
        expand_inputs([f"data/./{name}"])


EVERYTHING = ["data", "data/", "data/*", "data/**", "data/**/*.tar", "data/*/*.tar", "file://{data}"]


@pytest.mark.parametrize("pattern", EVERYTHING)
def test_links_to_folders_are_followed_and_loops_are_not(
    data: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = data.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "7.tar").write_bytes(b"12345")
    (data / "part2").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(data)
    (data / "part0" / "here").symlink_to(data / "part0")
    (data / "nowhere").symlink_to(data / "gone")
    found = names(pattern.format(data=data))
    assert "part2/7" in found
    assert len(found) == len(set(found))
    assert not any("back" in name or "here" in name for name in found), found
    assert names("data/part2/back/part1") == ["00000"], "named outright"
    if pattern != "data/*/*.tar":
        assert "leads back" in caplog.text


def test_a_glob_with_any_depth_in_the_middle(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "x" / "y" / "z").mkdir(parents=True)
    (data / "x" / "y" / "z" / "1.tar").write_bytes(b"")
    (data / "x" / "1.tar").write_bytes(b"")
    assert names("data/x/**/z/*.tar") == ["y/z/1"]
    assert names("data/**/**/1.tar") == ["x/1", "x/y/z/1"]
    monkeypatch.chdir(data)
    assert names("**/1.tar") == ["x/1", "x/y/z/1"]
    assert [shard.url for shard in expand_inputs(["x/**"])] == ["x/1.tar", "x/y/z/1.tar"]


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder with a subfolder that the user who runs may not read; root steps down to be such a user."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name in ("a/sub/0.tar", "b/sub/1.tar"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"")
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield root
    finally:
        if was_root:
            os.seteuid(0)
        (root / "b").chmod(0o755)
        shutil.rmtree(root)


def lock(root: Path, mode: int) -> None:
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    (root / "b").chmod(mode)
    os.seteuid(user)


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize(
    "pattern", ["", "/*", "/**", "/**/*.tar", "/*/*/*.tar", "/*/sub/*.tar", "/*/sub/1.tar"]
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_that_cannot_be_read_is_an_error(locked: Path, mode: int, pattern: str, scheme: str) -> None:
    lock(locked, mode)
    with pytest.raises(ValueError, match=r"/b.*: this folder cannot be read \(Permission denied\)"):
        expand_inputs([f"{scheme}{locked}{pattern}"])


def test_a_folder_that_may_be_left_out_is_not_looked_into(locked: Path) -> None:
    lock(locked, 0)
    assert names(f"{locked}/a/*/*.tar") == ["sub/0"]
    assert names(f"{locked}/[a]*/*/*.tar") == ["a/sub/0"]


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this folder is empty; put tar shards there") as caught:
        names(str(tmp_path))
    assert "tar cf" not in str(caught.value)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"`tar cf 00000\.tar --sort=name"):
        names(str(tmp_path))
