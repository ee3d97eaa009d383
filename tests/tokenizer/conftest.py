"""Goldens of the published tokenizer code (random weights): see tests/data/golden/README.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenizer.checkpoint import load_model
from tokenizer.seed import SeedModel

GOLDEN_DIRECTORY = Path(__file__).resolve().parents[1] / "data" / "golden"
SHARED_GOLDEN_DIRECTORY = Path(__file__).resolve().parents[3] / "shared" / "golden"


@dataclass(frozen=True)
class Golden:
    """One set: a tokenizer directory, pictures and what the published code makes of them."""

    directory: Path
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def images(self) -> np.ndarray:
        """(6, 224, 224, 3) uint8."""
        return self.arrays["resized_u8"]

    def model(self, **options: object) -> SeedModel:
        """The fp32 network of this set."""
        model, _ = load_model(self.directory, **options)
        return model.requires_grad_(False)


def read_golden(name: str) -> Golden:
    """The set ``reverse`` was made from the pictures of ``tiny``."""
    directory = GOLDEN_DIRECTORY / name
    arrays = dict(np.load(directory / "golden.npz"))
    if "resized_u8" not in arrays:
        arrays["resized_u8"] = np.load(GOLDEN_DIRECTORY / "tiny" / "golden.npz")["resized_u8"]
    return Golden(directory, arrays)


@pytest.fixture(scope="session", params=["tiny", "tiny512", "reverse"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Every set in turn."""
    return read_golden(request.param)


@pytest.fixture(scope="session")
def tiny() -> Golden:
    """The set with every intermediate result."""
    return read_golden("tiny")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads, and test machines are shared."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
