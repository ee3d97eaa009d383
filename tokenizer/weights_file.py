"""Reading and writing one file of weights. Nothing in a file is ever executed."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.atomic_write import atomic_path
from tokenizer.config import SeedTokenizerConfig
from tokenizer.official_names import POSITION_IDS

TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a ``.safetensors`` or torch file, mapped from disk where the format allows it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither format, is damaged, or holds anything but tensors (code above all).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a sound safetensors file ({error}); download it again") from error
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{path}: expected a .safetensors file or one of {', '.join(TORCH_SUFFIXES)}")
    return _only_tensors(_read_torch(path), path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a ``.safetensors`` file in one step; views are copied, since the format wants whole tensors."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def weights_sha256(official: Mapping[str, Tensor], config: SeedTokenizerConfig) -> str:
    """Identity of a tokenizer: hash over its configuration and tensors by official name.

    Values are hashed as little-endian fp32, so the file format, and fp16 or fp32 storage of the same values,
    make no difference; neither do the unused position ids. Every tensor is hashed by itself in a thread pool
    (hashlib releases the interpreter lock), then the sorted list of names, shapes and digests.
    """
    used = {name: tensor for name, tensor in official.items() if not name.endswith(POSITION_IDS)}
    return tensors_sha256(used, json.dumps(config.architecture(), sort_keys=True))


def tensors_sha256(tensors: Mapping[str, Tensor], *about: str) -> str:
    """Hash over texts about a network and its tensors, as ``weights_sha256`` says."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda name: _tensor_sha256(tensors[name]), names))
    lines = [
        f"{name} {list(tensors[name].shape)} {digest}" for name, digest in zip(names, digests, strict=True)
    ]
    return hashlib.sha256("\n".join([*about, *lines]).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_sha256(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


def _read_torch(path: Path) -> Any:
    """Content of a torch file, tensors and plain containers only."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it is damaged or holds more than tensors, and loading that could run code. "
            "If you trust it, convert it where it was made: "
            "safetensors.torch.save_file(state_dict, 'model.safetensors')"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a sound torch file ({error}); download it again") from error


def _only_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file; one level "model" or "state_dict", as trainers write it, is opened."""
    for level in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(level), Mapping):
            content = content[level]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a state dict (name -> tensor)")
    others = sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor))
    if others:
        raise ValueError(
            f"{path}: entries {others[:10]} are no tensors; expected a state dict (name -> tensor)"
        )
    return dict(content)
