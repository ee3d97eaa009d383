"""`ray job submit jobs/tokenize_obelics.py` as written, on a real local cluster.

The literal form runs where `ray start` ran, executes the file itself (executable bit, shebang found on that
PATH), and gets no flags: settings come from recipes/obelics_sample.yaml or from the environment. The form
with a working directory and flags is tested as the README has it (tests/docs/test_readme.py).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.token_shard import check_token_shard
from tests.local_cluster import RAY, cluster_environment, local_cluster, run_until_up

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "tokenizer", "pipeline", "jobs", "recipes", "samples")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that output lands in no working tree."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return cluster_environment()


@pytest.fixture(scope="module")
def address(checkout: Path, environment: dict[str, str]) -> Iterator[str]:
    """Of a cluster that was started in the checkout."""
    with local_cluster(checkout, environment) as (dashboard, _):
        yield dashboard


def _submit(checkout: Path, environment: dict[str, str], address: str, *arguments: str) -> str:
    return run_until_up([*RAY, "job", "submit", f"--address={address}", *arguments], checkout, environment)


def test_as_written(checkout: Path, environment: dict[str, str], address: str) -> None:
    output = _submit(checkout, environment, address, "jobs/tokenize_obelics.py")
    assert "2 token shards written" in output
    shards = sorted((checkout / "out/obelics_sample").glob("*.parquet"))
    assert sum(check_token_shard(shard).counts.images_written for shard in shards) == 21
