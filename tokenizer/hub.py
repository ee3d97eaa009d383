"""Where tokenizer weights come from: presets, local paths, the Hugging Face hub."""

import difflib
import importlib.resources
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizer.config import SeedTokenizerConfig

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
RELEASE_WEIGHTS_NAME = "seed_quantizer.pt"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?")


class NotDownloadedError(FileNotFoundError):
    """A file of the hub is not in the local cache, and was not to be or could not be downloaded."""


@dataclass(frozen=True)
class Preset:
    """A tokenizer known by name."""

    summary: str
    config: SeedTokenizerConfig | None = None
    """None: told by the config.json beside the weights."""
    hub_id: str | None = None
    directory: str | None = None
    """A folder inside this package; it is found however the package was installed."""


PRESETS = {
    "seed-2": Preset(
        "the released SEED-2 tokenizer (image_down decoder)",
        SeedTokenizerConfig(),
        hub_id=f"AILab-CVC/seed-tokenizer-2:{RELEASE_WEIGHTS_NAME}",
    ),
    "seed-2-training": Preset(
        "SEED-2 as its training code builds it (Reverse_Qformer decoder); no weights are published",
        SeedTokenizerConfig(use_qformer_image=True, reverse_layers=4),
    ),
    "sample": Preset(
        "a small tokenizer trained on emoji and photographs, part of this package", directory="sample"
    ),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """Local files of one tokenizer."""

    weights: Path
    config: Path | None
    """None: the configuration is read off the tensor shapes."""


def locate(source: str | Path, *, local_files_only: bool = False) -> TokenizerFiles:
    """Local files of a tokenizer, downloaded if need be.

    Args:
        source: a preset, a directory (``model.safetensors`` + ``config.json``), a ``.safetensors`` or ``.pt``
            file, or a hub id ``owner/name[@revision][:file]``.
        local_files_only: use the hub's local cache, never the network.

    Raises:
        FileNotFoundError: nothing there.
        NotDownloadedError: not in the cache while offline.
        ValueError: the name means nothing, or the preset has no weights.
    """
    text = str(source)
    if text in PRESETS:
        return _preset_files(text, local_files_only)
    path = Path(source).expanduser()
    if path.is_dir():
        return _directory_files(path)
    if path.is_file():
        return TokenizerFiles(path, None)
    match = _hub_id(source)
    return _hub_files(match["repo"], match["revision"], match["file"], local_files_only)


def check_source(source: str) -> None:
    """Raise FileNotFoundError if a source names nothing, as ``locate`` does, but ask the hub for nothing."""
    if source not in PRESETS and not Path(source).expanduser().exists():
        _hub_id(source)


def _hub_id(source: str | Path) -> re.Match[str]:
    """The parts of an id of the hub. Raises FileNotFoundError for a name that is none."""
    text = str(source)
    match = None if text.startswith((".", "/", "~")) else _HUB_ID.fullmatch(text)
    if match is not None and isinstance(source, str):
        return match
    close = difflib.get_close_matches(text, PRESETS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise FileNotFoundError(
        f"tokenizer {text!r} not found: {hint}Presets are {', '.join(PRESETS)}; anything else must be an "
        "existing file or directory, or a Hugging Face id such as AILab-CVC/seed-tokenizer-2"
    )


def _preset_files(name: str, local_files_only: bool) -> TokenizerFiles:
    preset = PRESETS[name]
    if preset.directory is not None:
        return _directory_files(Path(str(importlib.resources.files("tokenizer") / preset.directory)))
    if preset.hub_id is None:
        raise ValueError(
            f"preset {name!r} is {preset.summary}: train it (jobs/train_tokenizer.py) and give its "
            "directory instead"
        )
    return locate(preset.hub_id, local_files_only=local_files_only)


def _directory_files(path: Path) -> TokenizerFiles:
    config = path / CONFIG_NAME
    if (path / WEIGHTS_NAME).is_file():
        return TokenizerFiles(path / WEIGHTS_NAME, config if config.is_file() else None)
    if (path / RELEASE_WEIGHTS_NAME).is_file():
        return TokenizerFiles(path / RELEASE_WEIGHTS_NAME, None)
    raise FileNotFoundError(f"{path}: holds neither {WEIGHTS_NAME} nor {RELEASE_WEIGHTS_NAME}")


def _hub_files(repo: str, revision: str | None, file: str | None, local_files_only: bool) -> TokenizerFiles:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if file is not None:
        return TokenizerFiles(_download(repo, revision, file, local_files_only), None)
    try:
        config = _download(repo, revision, CONFIG_NAME, local_files_only)
        return TokenizerFiles(_download(repo, revision, WEIGHTS_NAME, local_files_only), config)
    except FileNotFoundError as error:
        cause = error.__cause__
        if not isinstance(cause, EntryNotFoundError | LocalEntryNotFoundError):
            raise
    return TokenizerFiles(_download(repo, revision, RELEASE_WEIGHTS_NAME, local_files_only), None)


def _download(repo: str, revision: str | None, file: str, local_files_only: bool) -> Path:
    """One file through the hub's client and its cache (its environment variables hold)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with asking_the_hub(f"{file} of {repo}", is_offline=local_files_only):
            return Path(hf_hub_download(repo, file, revision=revision, local_files_only=local_files_only))
    except LocalEntryNotFoundError as error:
        raise NotDownloadedError(
            f"{repo}: {file} is not in the local Hugging Face cache and the hub was not reached (offline "
            f"mode, or no connection). Download it where there is a network (hf download {repo} {file}) and "
            "give its path"
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"{repo}: the hub did not give {file}: {str(error).strip().splitlines()[-1]}. Check the id, the "
            "revision and, for a gated repository, your login"
        ) from error


@contextmanager
def asking_the_hub(what: str, *, is_offline: bool = False) -> Iterator[None]:
    """Say what the hub is asked for, and keep its client from telling of each of its retries, twice."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not (is_offline or HF_HUB_OFFLINE):
        logger.info("asking the Hugging Face hub for %s", what)
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def show_hub_requests() -> None:
    """For programs that show no other log: half a minute without a network is not to pass in silence."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
