"""Every command and every configuration in the documentation is one that the product takes."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.packing.mixture_file import load_mixture
from schemas.mixture import MixtureError
from tests.docs.command_parsers import check_command
from tests.docs.fences import PAGES, ROOT, SHELL, Fence, fences, shell_lines

ALL = [fence for page in PAGES if page.exists() for fence in fences(page)]
SHELL_FENCES = [fence for fence in ALL if fence.language in SHELL and "──" not in fence.text]
YAML_FENCES = [fence for fence in ALL if fence.language == "yaml"]
INLINE = re.compile(
    r"`((?:OMP_NUM_THREADS=1 )?(?:python (?:-m )?benchmarks|pytest|make|pip install) ?[^`]*)`"
)
INDENTED = re.compile(r"^    ((?:python|torchrun|seed-pack|seed-shards|ray) .*(?:\n {8}.*)*)", re.MULTILINE)


def commands_in(fence: Fence) -> list[str]:
    return shell_lines(fence.text)


@pytest.mark.parametrize("fence", SHELL_FENCES, ids=lambda fence: fence.name)
def test_commands_can_be_typed(fence: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in commands_in(fence):
        try:
            check_command(line)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{fence.name}: {line}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_indented_commands_can_be_typed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for match in INDENTED.finditer(page.read_text(encoding="utf-8")):
        for line in shell_lines(match[1]):
            try:
                check_command(line)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{page.name}: {line}\n{type(error).__name__}: {error}")


def test_benchmarks_tests_and_extras_named_in_passing_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    named = [match[1] for page in PAGES if page.exists() for match in INLINE.finditer(page.read_text())]
    assert len(named) > 20
    for line in named:
        check_command(" ".join(line.split()))


@pytest.mark.parametrize("fence", YAML_FENCES, ids=lambda fence: fence.name)
def test_configurations_are_accepted(fence: Fence, tmp_path: Path) -> None:
    """Mixtures by their reader; what is missing is only the data. Other YAML at least parses."""
    content = yaml.safe_load(fence.text)
    if "sources" not in content:
        assert "groups" in content, f"{fence.name}: no test knows what this is"  # Prometheus rules
        return
    for source in content["sources"]:
        suffix = {"parquet": "parquet", "jsonl": "jsonl"}.get(source.get("format", ""), "parquet")
        for path in source["paths"]:
            folder = tmp_path / (path if not path.endswith(("*.parquet", "*.jsonl")) else Path(path).parent)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"00000.{suffix}").touch()
    file = tmp_path / "mixture.yaml"
    file.write_text(fence.text, encoding="utf-8")
    mixture = load_mixture(file)
    assert [len(files) > 0 for files in mixture.files] == [True] * len(content["sources"])
    file.write_text(fence.text.replace("sources:", "source:"), encoding="utf-8")
    with pytest.raises(MixtureError):
        load_mixture(file)


def test_examples_of_json_lines_are_json() -> None:
    examples = [fence for fence in ALL if fence.language == "json"]
    assert examples
    for fence in examples:
        for line in fence.text.splitlines():
            json.loads(line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_a_wrong_flag_is_found() -> None:
    check_command("python jobs/tokenize_pairs.py --input a.tar --output out")
    for line in (
        "python jobs/tokenize_pairs.py --input a.tar --output out --presicion bf16",
        "seed-pack bild mixture.yaml",
        "torchrun --nproc-per-node 8 jobs/pretrain.py --data.pcked x",
        "torchrun --nnodes 2 --nproc-per-node 8 jobs/pretrain.py",
        "ray job submit --working-dir . -- python jobs/pretrain.py --launcher rey",
        "pip install 'seed-shards[gpus]'",
        "sbatch deploy/nothing.sbatch",
        "unheard-of --flag",
    ):
        with pytest.raises((Exception, SystemExit)):
            check_command(line)
