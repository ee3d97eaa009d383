"""What ``--input`` means: files, globs, braces, lists and directories, local or remote, as a list of shards.

Every shard gets a name that is the same from run to run, because it names the token shard: the path behind
the fixed part of its pattern, without the tar suffix. The fixed part ends at the last ``/`` before the
first wildcard or brace, or at ``/./`` where the pattern has one (as in ``rsync --relative``).
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.brace_patterns import expand_braces
from pipeline.local_listing import glob_local, list_folder, walk_folders
from pipeline.source_stream import filesystem_of, is_local, open_source
from pipeline.sources.other_files import remedy_for
from pipeline.sources.tar_reader import SHARD_SUFFIXES
from pipeline.token_dataset import RESERVED_FOLDERS
from schemas.atomic_write import TEMPORARY_PREFIX

_CUT = "/./"
_FILE_SCHEME = "file://"
_WILDCARDS = re.compile(r"[*?\[{]")
_HTTP_WILDCARDS = re.compile(r"[*{]")
"""In an http URL a question mark begins the query."""


_Entry = dict[str, Any]
"""What fsspec tells of a file: name, type, size."""


@dataclass(frozen=True, slots=True)
class SourceShard:
    """One source shard of a job."""

    url: str
    """Local path or fsspec URL."""
    name: str
    """Stable output name, ``/``-separated, without suffix: ``part0/00000``."""
    num_bytes: int | None = None
    """Size, where looking for it told."""


def expand_inputs(patterns: Sequence[str]) -> list[SourceShard]:
    """All shards of the patterns, in the order given; what a wildcard or folder finds is in natural order.

    Args:
        patterns: each a file, a glob (``*``, ``?``, ``[...]``, ``**``), braces (``{00000..00099}``,
            ``{a,b}``), a directory (all tars inside, at any depth), ``@file`` (one pattern a line, ``#``
            begins a comment), or a URL of any of these forms. Globs and directories pick only names with
            a tar suffix.

    Raises:
        ValueError: when a pattern matches nothing, a file is missing, a shard is named twice, or two shards
            would get one name; the message says which and what to do.
    """
    shards = [shard for pattern in _with_lists(patterns) for shard in _expand_pattern(pattern)]
    if not shards:
        raise ValueError("--input is empty: give at least one file, glob, list or directory of tar shards")
    check_unique(shards)
    return shards


def check_unique(shards: Iterable[SourceShard]) -> None:
    """Raise ValueError if a shard occurs twice, or two shards share a name."""
    urls: dict[str, str] = {}
    for shard in shards:
        if shard.name not in urls:
            urls[shard.name] = shard.url
        elif urls[shard.name] == shard.url:
            raise ValueError(f"--input names {shard.url} twice: remove one")
        else:
            raise ValueError(
                f"--input: {urls[shard.name]} and {shard.url} would both be written as '{shard.name}'; use "
                "one pattern that covers both, mark where the name begins with '/./' "
                "(data/./part0/00000.tar), or write them to two folders"
            )


def natural_key(path: str) -> list[tuple[bool, int, str]]:
    """Sort key with numbers by value: ``part2`` before ``part10``."""
    return [
        (piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece)
        for piece in re.split(r"(\d+)", path)
    ]


def shard_name(path: str, prefix: str) -> str:
    """The path behind ``prefix`` without the tar suffix.

    Raises:
        ValueError: if nothing is left, the name would lead out of the output folder, or would be taken there
            for an unfinished file or for bookkeeping.
    """
    name = path.removeprefix(prefix)
    suffixes = sorted(SHARD_SUFFIXES, key=len, reverse=True)
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    parts = [part for part in name[: len(name) - len(suffix)].split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ValueError(f"--input {path}: no output name can be made of '{name}'")
    if (len(parts) > 1 and parts[0] in RESERVED_FOLDERS) or any(
        part.startswith(TEMPORARY_PREFIX) for part in parts
    ):
        raise ValueError(
            f"--input {path}: the name '{'/'.join(parts)}' is kept for files of our own in the output folder "
            f"({', '.join(RESERVED_FOLDERS)}, '{TEMPORARY_PREFIX}...'): rename it, or move the '/./'"
        )
    return "/".join(parts)


def _with_lists(patterns: Sequence[str]) -> Iterator[str]:
    """The patterns, those of ``@file`` lists in place."""
    for pattern in patterns:
        if not pattern.startswith("@"):
            yield pattern
            continue
        try:
            with open_source(pattern[1:]) as stream:
                lines = stream.read().decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--input {pattern}: the list cannot be read: {error}") from error
        entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not entries:
            raise ValueError(f"--input {pattern}: the list has no entry")
        if any(entry.startswith("@") for entry in entries):
            raise ValueError(f"--input {pattern}: a list may not name another list")
        yield from entries


def _expand_pattern(pattern: str) -> list[SourceShard]:
    if not pattern.strip():
        raise ValueError("--input: an empty pattern")
    if pattern.startswith(_FILE_SCHEME):
        found = _expand_pattern(pattern.removeprefix(_FILE_SCHEME))
        return [replace(shard, url=_FILE_SCHEME + os.path.abspath(shard.url)) for shard in found]
    if is_local(pattern) and os.path.lexists(pattern):  # a name that looks like a pattern, perhaps
        paths, prefix = [pattern.replace(_CUT, "/", 1)], _cut_prefix(pattern)
    else:
        prefix = _cut_prefix(pattern)
        if prefix is None:
            prefix = _wildcard_prefix(pattern)
        try:
            paths = expand_braces(pattern.replace(_CUT, "/", 1))
        except ValueError as error:
            raise ValueError(f"--input {error}") from None
    if is_local(pattern):
        return [shard for path in paths for shard in _find_local(path, prefix)]
    return _find_remote(paths, prefix)


def _cut_prefix(pattern: str) -> str | None:
    """What stands before ``/./``; None where a pattern has none."""
    cut = pattern.find(_CUT)
    if cut < 0:
        return None
    if _WILDCARDS.search(pattern[:cut]):
        raise ValueError(f"--input {pattern}: '/./' must stand before the first wildcard or brace")
    return pattern[: cut + 1]


def _wildcard_prefix(pattern: str) -> str | None:
    """The folder before the first wildcard or brace; None for a literal: its own folder counts."""
    wildcards = _HTTP_WILDCARDS if pattern.startswith(("http://", "https://")) else _WILDCARDS
    first = wildcards.search(pattern)
    return pattern[: pattern.rfind("/", 0, first.start()) + 1] if first else None


def _file_prefix(path: str, prefix: str | None) -> str:
    return path[: path.rfind("/") + 1] if prefix is None else prefix


def _folder_prefix(path: str, prefix: str | None) -> str:
    return path.rstrip("/") + "/" if prefix is None else prefix


def _is_shard_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.lower().endswith(SHARD_SUFFIXES) and not name.startswith(".")


def _find_local(path: str, prefix: str | None) -> list[SourceShard]:
    """Shards of one path without braces.

    A folder that is called ``x.tar``, found by a glob or inside a folder, counts as a shard: reading it will
    be reported as that shard's error, which is better than to pass it over.
    """
    if os.path.lexists(path):
        if os.path.isdir(path):
            return _scan_local(path, _folder_prefix(path, prefix))
        return [_local_shard(path, _file_prefix(path, prefix))]
    if not _WILDCARDS.search(path):
        raise ValueError(f"--input {path}: no such file or directory")
    prefix = prefix or ""
    matches = sorted(glob_local(path), key=natural_key)
    shards = [_local_shard(match, prefix) for match in matches if _is_shard_name(match)]
    if "**" not in path:
        folders = [match for match in matches if os.path.isdir(match) and not _is_shard_name(match)]
        shards += [shard for folder in folders for shard in _scan_local(folder, prefix, may_be_empty=True)]
    if not shards:
        raise ValueError(_no_tar(path, matches))
    return shards


def _no_tar(pattern: str, matches: Sequence[str]) -> str:
    """What to say of a pattern that found no tar: what reads the first match whose name tells."""
    if not matches:
        return f"--input {pattern}: nothing matches; check the pattern"
    remedies = (remedy for match in matches if (remedy := remedy_for(match)))
    remedy = next(remedies, "check the pattern")
    return f"--input {pattern}: {len(matches):,} matched, none of them a tar; {remedy}"


def _scan_local(folder: str, prefix: str, may_be_empty: bool = False) -> list[SourceShard]:
    found = [path for parent in walk_folders(folder) for path in list_folder(parent) if _is_shard_name(path)]
    if not found and not may_be_empty:
        if not os.listdir(folder):
            raise ValueError(f"--input {folder}: this folder is empty; put tar shards there, or name another")
        raise ValueError(
            f"--input {folder}: no {', '.join(SHARD_SUFFIXES[:4])} file in this directory; loose pictures and"
            f" their captions become a shard by `tar cf 00000.tar --sort=name -C {folder} .`"
        )
    return [_local_shard(path, prefix) for path in sorted(found, key=natural_key)]


def _local_shard(path: str, prefix: str) -> SourceShard:
    num_bytes = os.path.getsize(path) if os.path.isfile(path) else None
    return SourceShard(path, shard_name(path, prefix), num_bytes)


def _find_remote(urls: list[str], prefix: str | None) -> list[SourceShard]:
    """Shards of URLs without braces, all of one file system."""
    filesystem, _ = filesystem_of(urls[0])
    if urls[0].startswith(("http://", "https://")) and not _HTTP_WILDCARDS.search(urls[0]):
        # a web server lists nothing: a missing file shows when it is read
        names = [url.partition("?")[0] for url in urls]
        return [
            SourceShard(url, shard_name(name, _file_prefix(name, prefix)))
            for url, name in zip(urls, names, strict=True)
        ]
    if prefix is not None:
        plain = filesystem._strip_protocol(prefix).rstrip("/")
        prefix = plain + "/" if plain else ""
    listing = _RemoteListing(filesystem)
    return [shard for url in urls for shard in listing.find(url, prefix)]


class _RemoteListing:
    """Finds shards with one listing a folder, not one request a shard: 100,000 HEADs would take an hour."""

    def __init__(self, filesystem: AbstractFileSystem) -> None:
        self._filesystem = filesystem
        self._folders: dict[str, dict[str, _Entry]] = {}

    def find(self, url: str, prefix: str | None) -> list[SourceShard]:
        path = self._filesystem._strip_protocol(url)
        if _WILDCARDS.search(path):
            found = self._filesystem.glob(path, detail=True)
            if "**" not in path:
                for folder in [name for name, entry in found.items() if entry["type"] == "directory"]:
                    found |= {} if _is_shard_name(folder) else self._filesystem.find(folder, detail=True)
            return self._shards(url, found, prefix or "")
        entry = self._entry(path)
        if entry is None:
            raise ValueError(f"--input {url}: no such file or folder")
        if entry["type"] == "directory":
            found = self._filesystem.find(path, detail=True)
            return self._shards(url, found, _folder_prefix(path, prefix))
        return [self._shard(path, entry, _file_prefix(path, prefix))]

    def _shards(self, url: str, found: dict[str, _Entry], prefix: str) -> list[SourceShard]:
        visible = (path for path in found if "/." not in "/" + path.removeprefix(prefix))
        paths = sorted((path for path in visible if _is_shard_name(path)), key=natural_key)
        if not paths:
            raise ValueError(_no_tar(url, sorted(found, key=natural_key)))
        return [self._shard(path, found[path], prefix) for path in paths]

    def _shard(self, path: str, entry: _Entry, prefix: str) -> SourceShard:
        return SourceShard(
            self._filesystem.unstrip_protocol(path), shard_name(path, prefix), entry.get("size")
        )

    def _entry(self, path: str) -> _Entry | None:
        folder = path.rstrip("/").rpartition("/")[0]
        if folder not in self._folders:
            try:
                entries = (
                    self._filesystem.ls(folder, detail=True) if folder else [self._filesystem.info(path)]
                )
            except FileNotFoundError:
                entries = []
            self._folders[folder] = {entry["name"].rstrip("/"): entry for entry in entries}
        return self._folders[folder].get(path.rstrip("/"))
