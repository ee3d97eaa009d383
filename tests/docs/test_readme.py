"""The README does what it says: its commands run as they stand, in order, on a few real pictures.

Left out are the lines that make the environment (`source`, `export`, `ray start`: fixtures have done that),
and training stops after a few steps.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.token_shard import read_documents
from tests.docs.fences import ROOT, section, shell_lines
from tests.local_cluster import cluster_environment, local_cluster, run_until_up

README = ROOT / "README.md"
PACKAGES = ("schemas", "tokenizer", "pipeline", "trainer", "jobs")
NUM_PICTURES = 6
SET_UP = ("source ", "export ", "ray start ")
FEW_STEPS = " --num-steps 2 --data.global-batch 1 --data.micro-batch 1 --device cpu"
STEP_COMMAND = "jobs/pretrain.py"
COMMANDS = {
    "seed-shards": "pipeline.inspect_shards",
    "seed-pack": "pipeline.packing.cli",
    "ray": "ray.scripts.scripts",
    "python": None,
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as a stranger has it, with a folder of pictures and captions beside the code."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "pyproject.toml", "recipes", "samples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "photos").mkdir()
    with tarfile.open(ROOT / "samples" / "pairs" / "00000.tar") as tar:
        members = [member for member in tar if member.name.endswith((".jpg", ".png", ".txt"))]
        for member in members[: 2 * NUM_PICTURES]:
            (folder / "photos" / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    return folder


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    """What `source .venv/bin/activate` gives: our commands on the PATH, here those of this checkout."""
    scripts = checkout / ".venv" / "bin"
    scripts.mkdir(parents=True)
    for name, module in COMMANDS.items():
        start = f"-m {module} " if module else ""
        (scripts / name).write_text(f'#!/bin/sh\nexec {sys.executable} {start}"$@"\n')
        (scripts / name).chmod(0o755)
    variables = cluster_environment()
    return variables | {
        "PATH": os.pathsep.join([str(scripts), variables["PATH"]]),
        "PYTHONPATH": str(checkout),
    }


@pytest.fixture(scope="module")
def cluster(checkout: Path, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    with local_cluster(checkout, environment) as addresses:
        yield addresses


def commands(title: str) -> list[str]:
    lines = [
        line
        for fence in section(README, title)
        if fence.language == "bash"
        for line in shell_lines(fence.text)
    ]
    assert lines, title
    return [
        line + FEW_STEPS if STEP_COMMAND in line else line for line in lines if not line.startswith(SET_UP)
    ]


def run_all(lines: list[str], folder: Path, environment: dict[str, str]) -> str:
    script = "set -e\n" + "\n".join(lines)
    result = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.ray
def test_own_data_from_pictures_to_a_drawing_model(
    checkout: Path, environment: dict[str, str], cluster: tuple[str, str]
) -> None:
    on_cluster = environment | {"RAY_ADDRESS": cluster[1]}
    printed = run_all(commands("Tokenize your own data in five minutes"), checkout, on_cluster)
    assert re.search(r"^done +1$", printed, re.MULTILINE)
    assert "1 token shard checked, 0 faults" in printed
    documents = list(read_documents(checkout / "tokens" / "mine" / "00000.parquet"))
    captions = sorted(path.read_text().strip() for path in (checkout / "photos").glob("*.txt"))
    assert sorted(text for document in documents for text in document.texts) == captions
    assert len(documents) == NUM_PICTURES
    assert "<img" in (checkout / "report.html").read_text()

    (mixture,) = (fence.text for fence in section(README, "Train on it") if fence.language == "yaml")
    (checkout / "mixture.yaml").write_text(mixture)
    printed = run_all(commands("Train on it"), checkout, environment)
    assert f"mine: {2 * NUM_PICTURES} documents" in printed
    codes = re.search(r'"codes": \[([\d, ]+)\]', printed)
    assert codes is not None
    assert len(codes[1].split(",")) == 32


@pytest.mark.ray
def test_on_a_cluster(checkout: Path, environment: dict[str, str], cluster: tuple[str, str]) -> None:
    if not (checkout / "data").exists():
        shutil.copytree(ROOT / "samples" / "pairs", checkout / "data")
    (line,) = commands("Run it on a cluster")
    printed = run_until_up(["bash", "-c", line], checkout, environment | {"RAY_ADDRESS": cluster[0]})
    assert re.search(r"\d token shards? written", printed)
    assert list((checkout / "tokens" / "cluster").glob("*.parquet"))
