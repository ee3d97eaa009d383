"""The file map of the README is the first sentence of each file's docstring: it cannot go stale.

python tests/test_readme.py     rewrites the map
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FOLDERS = (
    "schemas",
    "tokenizer",
    "pipeline",
    "pipeline/sources",
    "pipeline/packing",
    "trainer",
    "trainer/evaluation",
    "jobs",
    "benchmarks",
)
BEGIN, END = "<!-- file map: begin -->\n", "<!-- file map: end -->"


def first_sentence(path: Path) -> str:
    """What a file says of itself, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.])\s", paragraph)[0].rstrip(".").replace("``", "`")


def file_map() -> str:
    lines = []
    for folder in FOLDERS:
        lines.append(f"\n**{folder}/**\n")
        files = [path for path in sorted((ROOT / folder).glob("*.py")) if path.name != "__init__.py"]
        lines += [f"- `{path.name}`: {first_sentence(path)}" for path in files]
    return "\n".join(lines) + "\n\n"


def test_the_file_map_says_what_the_files_say() -> None:
    text = README.read_text(encoding="utf-8")
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert written == file_map(), "run: python tests/test_readme.py"


def test_every_document_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert link.startswith("http") or (ROOT / link).exists(), link


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    README.write_text(head + file_map() + tail, encoding="utf-8")
