"""Imports run downwards: jobs -> pipeline | trainer -> tokenizer -> schemas. No cycles, ray in one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "schemas": set(),
    "tokenizer": {"schemas"},
    "pipeline": {"schemas", "tokenizer"},
    "trainer": {"schemas", "tokenizer"},
    "jobs": {"schemas", "tokenizer", "pipeline", "trainer"},
}


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, function bodies included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; this project imports by full name"
            names.add((node.module or "").split(".")[0])
    return names


def source_files() -> list[Path]:
    return [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = imported_packages(path) & set(ALLOWED)
    assert ours <= ALLOWED[package] | {package}


def test_schemas_import_neither_torch_nor_ray() -> None:
    for path in (ROOT / "schemas").rglob("*.py"):
        assert not imported_packages(path) & {"torch", "ray", "transformers", "webdataset"}, path


def test_ray_is_imported_in_the_ray_files_of_the_pipeline_and_in_jobs_only() -> None:
    for path in source_files():
        relative = path.relative_to(ROOT).as_posix()
        if "ray" in imported_packages(path):
            assert relative.startswith(("pipeline/ray_", "jobs/")), relative
