"""The output folder of a tokenization: token shards, ledgers, and the bookkeeping around them.

    _dataset.json             what all shards here have in common, made once by the first run
    NAME.parquet              a token shard; it exists only when it is complete
    NAME.quarantine-HASH.jsonl
                              its ledger, where something was refused
    _failed/NAME.json         a source shard that was set aside
    _logs/RUN.config.json     resolved configuration of a run
    _logs/RUN.jsonl           one line a shard
    _report.json              totals of the last run that ended

``NAME`` may have parts divided by ``/``. What is done is told by the names alone: no file needs to be opened
to resume.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pipeline.counted import counted
from pipeline.shard_task import TOKEN_SHARD_SUFFIX, ShardFailure, ShardTask, ledger_name, ledger_owner
from pipeline.source_identity import SourceIdentity, identities_now
from pipeline.storage import Folder, LocalFolder
from schemas.differences import differences
from schemas.fingerprint import Fingerprint
from schemas.token_shard import FORMAT_VERSION, TokenShardError, TokenShardFooter, read_footer

MANIFEST_NAME = "_dataset.json"
FIRST_PACKED_SHARD = "packed-00000.parquet"
"""What `seed-pack build` writes into every packed set."""
FAILED_FOLDER = "_failed"
LOGS_FOLDER = "_logs"
REPORT_NAME = "_report.json"
NUM_SOURCES_PROBED = 16
RESERVED_FOLDERS = (FAILED_FOLDER, LOGS_FOLDER)


class OutputMismatchError(ValueError):
    """The output folder holds something that this run must not be mixed with."""


@dataclass(frozen=True)
class DatasetManifest:
    """What all token shards of a folder have in common."""

    kind: str
    fingerprint: Fingerprint
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other settings that decide rows: what a bad image costs, limits of the source."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        # In the form in which they will be read back: tuples become lists.
        object.__setattr__(self, "settings", json.loads(json.dumps(dict(self.settings))))

    def to_json(self) -> str:
        fields = {
            "format_version": self.format_version,
            "kind": self.kind,
            "fingerprint": self.fingerprint.hex,
            "fingerprint_components": self.fingerprint.components,
            "settings": self.settings,
        }
        return json.dumps(fields, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Parse a manifest.

        Raises:
            OutputMismatchError: if it is none of this format version.
        """
        try:
            fields = json.loads(data)
            manifest = cls(
                fields["kind"],
                Fingerprint(fields["fingerprint_components"]),
                fields["settings"],
                fields["format_version"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise OutputMismatchError(f"{where}: no manifest of token shards: {error!r}") from error
        if manifest.format_version != FORMAT_VERSION:
            raise OutputMismatchError(
                f"{where}: format version {manifest.format_version}, this program writes {FORMAT_VERSION}"
            )
        return manifest

    def differences(self, other: "DatasetManifest") -> list[str]:
        """One line for each difference but that of the kind, this one's value first."""
        lines = [f"tokenizer {line}" for line in self.fingerprint.differences(other.fingerprint)]
        return lines + differences({"settings": self.settings}, {"settings": other.settings})


@dataclass(frozen=True)
class TokenDataset:
    """An output folder whose manifest fits."""

    folder: Folder
    manifest: DatasetManifest

    @classmethod
    def claim(cls, folder: Folder, manifest: DatasetManifest) -> Self:
        """Take a folder for this run: make its manifest, or check that the one there is the same.

        Raises:
            OutputMismatchError: saying what differs, or that the folder holds files of someone else.
        """
        if not folder.exists(MANIFEST_NAME):
            _refuse_foreign_files(folder)
            folder.create(MANIFEST_NAME, manifest.to_json().encode())
        existing = cls.open(folder)
        check_same(folder, manifest, existing.manifest)
        return existing

    @classmethod
    def open(cls, folder: Folder) -> Self:
        """An existing folder of token shards.

        Raises:
            OutputMismatchError: if it is none.
        """
        where = f"{folder.url}/{MANIFEST_NAME}"
        try:
            data = folder.read(MANIFEST_NAME)
        except FileNotFoundError:
            raise OutputMismatchError(f"{folder.url}: {_why_none(folder)}") from None
        return cls(folder, DatasetManifest.from_json(data, where))

    def files(self) -> dict[str, int]:
        """Sizes of all token shards and ledgers, by file name."""
        return {
            name: size
            for name, size in self.folder.names().items()
            if (name.endswith(TOKEN_SHARD_SUFFIX) or ledger_owner(name)) and not is_bookkeeping(name)
        }

    def done(self) -> set[str]:
        """Names of the token shards that exist."""
        suffix = TOKEN_SHARD_SUFFIX
        return {name.removesuffix(suffix) for name in self.files() if name.endswith(suffix)}

    def footer(self, name: str) -> TokenShardFooter:
        """Footer of a token shard. Raises TokenShardError."""
        return read_footer(**self.folder.parquet_source(name + TOKEN_SHARD_SUFFIX))

    def left_over_ledgers(self) -> Iterator[str]:
        """Names of ledgers that no token shard names: of attempts that were killed, or replaced since."""
        files = self.files()
        for file_name in sorted(files):
            name = ledger_owner(file_name)
            if name is None:
                continue
            if name + TOKEN_SHARD_SUFFIX not in files:
                yield file_name
                continue
            with contextlib.suppress(TokenShardError):  # damaged: whether it names the ledger is not known
                quarantine = self.footer(name).quarantine
                if quarantine is None or ledger_name(name, quarantine.sha256) != file_name:
                    yield file_name

    def failures(self) -> dict[str, ShardFailure]:
        """Source shards that were set aside, by name."""
        found = {}
        for name in sorted(self.folder.names(FAILED_FOLDER)):
            if name.endswith(".json"):
                failure = ShardFailure(**json.loads(self.folder.read(f"{FAILED_FOLDER}/{name}")))
                found[failure.name] = failure
        return found

    def set_aside(self, failure: ShardFailure) -> None:
        text = json.dumps(asdict(failure), indent=1) + "\n"
        self.folder.write(f"{FAILED_FOLDER}/{failure.name}.json", text.encode())

    def forget_failure(self, name: str) -> None:
        self.folder.remove(f"{FAILED_FOLDER}/{name}.json")

    def check_sources(self, tasks: Iterable[ShardTask], done: set[str]) -> None:
        """Look into some token shards that stand for tasks: they must come from those very sources.

        Catches a second input whose shards happen to have the names of the first (both ``00000.tar`` ...),
        which would otherwise pass for done. A source that moved keeps its size and both its ends, and is
        recognised by them; of what an earlier version made, only the size is known.

        Raises:
            OutputMismatchError: naming a source and the one whose token shard stands in its place.
        """
        standing = [task for task in tasks if task.name in done]
        step = max(1, len(standing) // NUM_SOURCES_PROBED)
        for task in standing[::step]:
            try:
                footer = self.footer(task.name)
            except TokenShardError as error:
                raise OutputMismatchError(f"{error}; remove it and run the same command again") from error
            (now,) = identities_now([(task.source, task.source_bytes)])
            difference = SourceIdentity(footer.source_bytes, footer.source_hash).difference(now)
            if difference is None:
                continue
            if footer.source == task.source:
                raise OutputMismatchError(f"output {self.folder.url}: {changed_source(difference, task)}")
            raise OutputMismatchError(
                f"output {self.folder.url}: {task.name}{TOKEN_SHARD_SUFFIX} was made from {footer.source}, "
                f"not from {task.source} ({difference}): give this input a folder of its own, or --overwrite"
            )


def changed_source(difference: str, task: ShardTask) -> str:
    """What to say where a source shard is no longer what it was when it was tokenized."""
    return (
        f"{task.source} changed since {task.name}{TOKEN_SHARD_SUFFIX} was made of it ({difference}): remove "
        "that token shard, to have it made again, or --overwrite all"
    )


def _why_none(folder: Folder) -> str:
    """Why a folder without a manifest is no folder of token shards."""
    if isinstance(folder, LocalFolder) and not folder.path.exists():
        return "no such folder"
    if folder.exists(FIRST_PACKED_SHARD):
        return f"a packed set, no folder of token shards; look at it with `seed-pack show {folder.url}`"
    return f"no folder of token shards ({MANIFEST_NAME} is missing)"


def is_bookkeeping(name: str) -> bool:
    """Whether a file name in the folder is neither token shard nor ledger by its place."""
    folder, separator, _ = name.partition("/")
    return bool(separator and folder in RESERVED_FOLDERS) or name in (MANIFEST_NAME, REPORT_NAME)


def check_same(folder: Folder, wanted: DatasetManifest, existing: DatasetManifest) -> None:
    """Raise OutputMismatchError with what differs and what to do."""
    if wanted.kind != existing.kind:
        raise OutputMismatchError(
            f"output {folder.url}: the folder holds {existing.kind}, this job writes {wanted.kind}: choose"
            " another --output"
        )
    if differences := wanted.differences(existing):
        raise OutputMismatchError(
            f"output {folder.url}: its token shards were made differently ({'; '.join(differences)}); "
            "such shards must not be mixed: choose another --output, or run with the settings of "
            f"{MANIFEST_NAME}"
        )


def _refuse_foreign_files(folder: Folder) -> None:
    """A folder of someone else must not get our files among its own; hidden ones may be there (`.git`)."""
    names = folder.names()
    foreign = [
        name for name in names if not is_bookkeeping(name) and not any(p[:1] == "." for p in name.split("/"))
    ]
    if foreign and MANIFEST_NAME not in names:  # another run may just have made it
        raise OutputMismatchError(
            f"output {folder.url}: holds {counted(len(foreign), 'other file')} ({foreign[0]}, ...) but no "
            f"{MANIFEST_NAME}: choose an empty folder, or a name that is not there yet"
        )
