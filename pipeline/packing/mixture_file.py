"""Read a mixture file: strict YAML to the dataclasses of ``schemas.mixture``, and patterns to files."""

import glob
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.packing.input_identity import content_identity
from pipeline.packing.metadata_filter import parse_expression
from pipeline.packing.templates import TEMPLATES
from pipeline.strict_yaml import read_yaml
from schemas.mixture import MixtureConfig, MixtureError, SourceConfig
from schemas.packed_shard import FORMAT_VERSION
from schemas.settings import SettingsError, parse_settings
from tokenizer.text_backend import TextTokenizerError
from tokenizer.text_tokenizer import TextTokenizer, load_text_tokenizer

CODE_VERSION = 3
"""Raised when the same mixture comes out as other packed sequences than before."""

SUFFIXES = {"token_shards": (".parquet",), "parquet": (".parquet",), "jsonl": (".jsonl", ".json", ".ndjson")}


@dataclass(frozen=True)
class Mixture:
    """A mixture whose files are known and whose settings are checked."""

    config: MixtureConfig
    root: Path
    """Relative names start here: the folder of the mixture file."""
    files: tuple[tuple[str, ...], ...]
    """Sorted names of each source's files, relative to ``root`` where the mixture file says so."""
    name: str = "mixture"
    """The mixture file, for messages."""

    def path(self, name: str) -> Path:
        return self.root / name

    def load_tokenizer(self) -> TextTokenizer:
        """The text tokenizer; TextTokenizerError if it cannot be had."""
        config = self.config.text_tokenizer
        local = self.root / config.path
        found = str(local) if local.exists() else config.path
        try:
            return _load_tokenizer(found, config.path, config.bos_token, config.eos_token)
        except TextTokenizerError as error:
            raise TextTokenizerError(f"{self.name}: text_tokenizer: {error}") from error

    @cached_property
    def components(self) -> dict[str, Any]:
        """All that decides the packed set, as plain JSON; not what only decides how the work is cut."""
        config = json.loads(json.dumps(asdict(self.config), default=str))
        for name in ("bucket_ids", "task_rows"):
            del config["packing"][name]
        inputs = {
            source.name: {name: content_identity(self.path(name)) for name in names}
            for source, names in zip(self.config.sources, self.files, strict=True)
        }
        tokenizer = self.load_tokenizer()
        marks = {"tokenizer_sha256": tokenizer.sha256, "format": FORMAT_VERSION, "code": CODE_VERSION}
        return {"config": config, "inputs": inputs, **marks}

    def identity(self) -> str:
        """Hash over the components."""
        text = json.dumps(self.components, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=4)
def _load_tokenizer(path: str, name: str, bos_token: str | None, eos_token: str | None) -> TextTokenizer:
    tokenizer = load_text_tokenizer(path, bos_token=bos_token, eos_token=eos_token)
    tokenizer.name = name
    return tokenizer


def load_mixture(path: Path) -> Mixture:
    """Parse a mixture file and find its sources' files.

    Raises:
        MixtureError: naming the file and the setting.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise MixtureError(str(error)) from error
    except OSError as error:
        raise MixtureError(f"{path}: the mixture file cannot be read: {error.strerror}") from error
    try:
        config = parse_settings(MixtureConfig, _spread_templates(content))
        return replace(resolve_mixture(config, path.parent), name=str(path))
    except SettingsError as error:
        raise MixtureError(f"{path}: {error}") from error


def resolve_mixture(config: MixtureConfig, folder: Path) -> Mixture:
    """Check templates and filters, and find the files; relative paths start at ``folder``."""
    for source in config.sources:
        template_settings(source)
        if source.filters.where is not None:
            parse_expression(source.filters.where, f"source {source.name}: filters.where")
    return Mixture(config, folder, tuple(find_files(source, folder) for source in config.sources))


def template_settings(source: SourceConfig) -> Any:
    """The settings object of a source's template.

    Raises:
        SettingsError: if there is no such template or a setting is wrong.
    """
    if source.template not in TEMPLATES:
        raise MixtureError(
            f"source {source.name}: template {source.template!r} is none of {', '.join(TEMPLATES)}"
        )
    return parse_settings(TEMPLATES[source.template][1], source.settings, f"source {source.name}: template.")


def find_files(source: SourceConfig, root: Path) -> tuple[str, ...]:
    """Files of a source, sorted by name.

    Names within a folder that begin with a dot (unfinished) or an underscore (reports, logs) are left out;
    of token shards only those with a dot, or in the folders `_failed` and `_logs`.

    Raises:
        MixtureError: if a path matches nothing.
    """
    suffixes = SUFFIXES[source.format]
    found: set[str] = set()
    for pattern in source.paths:
        path = root / pattern
        candidates = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        matching = {
            str(item) if Path(pattern).is_absolute() else os.path.relpath(item, root)
            for item in candidates
            if item.is_file() and item.suffix in suffixes and not _is_hidden(item, path, source.format)
        }
        if not matching:
            relative = "" if Path(pattern).is_absolute() else " (paths are relative to the mixture file)"
            hint = "; for plain text say format: parquet or jsonl" if source.format == "token_shards" else ""
            raise MixtureError(
                f"source {source.name}: no {source.format} file (*{', *'.join(suffixes)}) at"
                f" {path.absolute()}{relative}{hint}"
            )
        found |= matching
    return tuple(sorted(found))


def _is_hidden(item: Path, folder: Path, file_format: str) -> bool:
    parts = item.relative_to(folder).parts if folder in item.parents else (item.name,)
    if file_format == "token_shards":  # a shard may be called `_a`
        return any(part.startswith(".") or part in ("_failed", "_logs") for part in parts)
    return any(part.startswith((".", "_")) for part in parts)


def _spread_templates(content: Any) -> Any:
    """``template: {name: pair, reverse_ratio: 0.5}`` becomes the two fields of ``SourceConfig``."""
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        return content
    sources = []
    for source in content["sources"]:
        template = source.get("template") if isinstance(source, dict) else None
        if isinstance(template, dict):
            settings = {key: value for key, value in template.items() if key != "name"}
            if "name" not in template:
                raise MixtureError(f"source {source.get('name')}: template needs a name")
            source = {**source, "template": template["name"], "settings": settings}
        sources.append(source)
    return {**content, "sources": sources}
