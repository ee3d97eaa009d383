"""The package as others install it: what a wheel holds, and what its metadata promise."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from schemas import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str, folder: Path, **variables: str) -> str:
    result = subprocess.run(
        command, cwd=folder, env=OUTSIDE | variables, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tracked(*paths: str) -> set[str]:
    """Files that git knows and that are there."""
    command = ["git", "ls-files", "-z", "--", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


def build(kind: str, source: Path, folder: Path) -> Path:
    """A distribution of ``source`` in ``folder``, by the backend alone: without an index."""
    script = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", script, str(folder), folder=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, and unpacked."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    archive = build("sdist", copy, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True)
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as pip does it."""
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked beside no repository, as an index would install it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_source_distribution_is_the_repository(sdist: Path) -> None:
    """So README's commands, the tests and the docs work in it; only the settings of our CI stay behind."""
    files = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert tracked()
    assert {name for name in tracked() - files if not name.startswith(".ci/")} == set()
    added = {name for name in files - tracked() if ".egg-info/" not in name}
    assert added == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_the_packages_and_the_sample_tokenizer(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        fields = email.message_from_bytes(archive.read(metadata))
    assert tracked("schemas", "tokenizer", "pipeline", "trainer", "jobs") <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "samples"))]
    assert fields["Version"] == __version__
    assert set(fields.get_all("Provides-Extra") or []) == PROJECT["optional-dependencies"].keys()


def test_an_editable_installation_is_made_without_a_warning(sdist: Path, tmp_path: Path) -> None:
    """As `make setup` makes it; it is one line that names the folder."""
    script = "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, cwd=sdist, env=OUTSIDE, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert archive.read(path).decode().strip() == str(sdist)


def test_commands_of_the_wheel_work_away_from_the_repository(installed: Path, tmp_path: Path) -> None:
    at = {"PYTHONPATH": str(installed)}
    for target in PROJECT["scripts"].values():
        module = target.partition(":")[0]
        assert "usage" in run(sys.executable, "-m", module, "--help", folder=tmp_path, **at).lower()
    version = run(sys.executable, "-m", "pipeline.inspect_shards", "--version", folder=tmp_path, **at)
    assert version.split()[-1] == __version__
    run(
        sys.executable, "-m", "jobs.tokenize_pairs", "--input", str(ROOT / "samples/pairs/00000.tar"),
        "--output", "tokens", "--tokenizer", "sample", "--num-actors", "0", "--decode-workers", "1",
        folder=tmp_path, **at,
    )  # fmt: skip
    show = [sys.executable, "-m", "pipeline.inspect_shards", "show", "tokens", "--limit", "1"]
    assert "<image:" in run(*show, folder=tmp_path, **at)


def test_the_version_stands_in_the_changelog_and_nowhere_else() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## ([\d.]+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
    assert "version" in PROJECT["dynamic"]


def test_what_the_tests_use_is_pinned() -> None:
    pins = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = [requirement for extra in ("dev", "train", "ingest", "decode", "docs", "s3") for requirement in
              PROJECT["optional-dependencies"][extra]]  # fmt: skip
    named = {re.match(r"[\w.-]+", requirement)[0] for requirement in (*PROJECT["dependencies"], *extras)}
    assert named - {"seed-shards", "types-PyYAML"} <= pins


@pytest.mark.slow
def test_it_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With all it needs, from the index."""
    run(sys.executable, "-m", "venv", "venv", folder=tmp_path)
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
    run(*pip, "-c", str(ROOT / "constraints.txt"), str(wheel), folder=tmp_path)
    for name in PROJECT["scripts"]:
        assert run(str(tmp_path / "venv/bin" / name), "--help", folder=tmp_path)
    version = run(str(tmp_path / "venv/bin/seed-shards"), "--version", folder=tmp_path)
    assert version.split()[-1] == __version__
