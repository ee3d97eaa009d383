"""The mixture file is read strictly: whatever is wrong names its place and, where it can, the remedy."""

from pathlib import Path

import pytest
import yaml

from pipeline.packing.draws import DocumentDraws
from pipeline.packing.metadata_filter import parse_expression
from pipeline.packing.mixture_file import load_mixture
from pipeline.packing.templates import TEMPLATES
from schemas.document import Document, Role, TextSegment
from schemas.mixture import MixtureError
from schemas.settings import parse_settings
from tests.packing.corpus import ROOT, mixture_text, write_corpus
from tokenizer.text_backend import TextTokenizerError

ONE = "\n  - {name: pairs, paths: [pairs], weight: 1, template: %s}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), num_pairs=6, num_pages=2)


def load(corpus: Path, **changes: str):
    path = corpus / "mixture.yaml"
    path.write_text(mixture_text(**changes))
    return load_mixture(path)


def test_names_are_relative_to_the_mixture_file(corpus: Path) -> None:
    mixture = load(corpus)
    assert mixture.files[0] == tuple(f"pairs/{index:05d}.parquet" for index in range(3))
    assert mixture.files[2] == ("prose.jsonl",)
    moved = corpus.rename(corpus.with_name("moved"))
    assert load_mixture(moved / "mixture.yaml").identity() == mixture_identity(moved)
    moved.rename(corpus)
    assert mixture.identity() == load(corpus).identity()


def test_reports_logs_and_unfinished_files_are_no_sources(corpus: Path) -> None:
    for name in ("lines/0.jsonl", "lines/_report.json", "lines/_logs/0.jsonl", "lines/.tmp-1.jsonl"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text('{"text": "a"}\n')
    source = "\n  - {name: lines, paths: [lines], format: jsonl, weight: 1, template: text}"
    assert load(corpus, sources=source).files == (("lines/0.jsonl",),)


def test_a_token_shard_whose_name_begins_with_an_underscore_is_a_source(corpus: Path) -> None:
    shard = (corpus / "pairs" / "00000.parquet").read_bytes()
    for name in ("_a.parquet", "_logs/0.parquet", ".tmp-1.parquet"):
        (corpus / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "few" / name).write_bytes(shard)
    source = "\n  - {name: few, paths: [few], weight: 1, template: pair}"
    assert load(corpus, sources=source).files == (("few/_a.parquet",),)


def mixture_identity(folder: Path) -> str:
    return load_mixture(folder / "mixture.yaml").identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": "3"}, r"sead: unknown setting; did you mean 'seed'\?"),
        ({"seed": "x"}, r"seed: expected int, got 'x'"),
        ({"seed": "true"}, r"seed: expected int, got True"),
        ({"text_tokenizer": "{}"}, r"text_tokenizer\.missing path"),
        ({"text_tokenizer": ""}, r"missing text_tokenizer"),
        ({"seq_length": "32"}, r"seq_length must be at least 64"),
        ({"sources": "[]"}, r"there are none"),
        ({"sources": ONE % "pear"}, r"template 'pear' is none of pair, interleaved"),
        (
            {"sources": ONE % "{name: pair, reverse_ration: 1}"},
            r"source pairs: template\.reverse_ration: unknown setting; did you mean 'reverse_ratio'\?",
        ),
        ({"sources": ONE % "{name: pair, reverse_ratio: 2}"}, r"reverse_ratio must be in 0\.\.1, got 2"),
        ({"sources": ONE % "{name: pair, prompts: [x]}"}, r"prompts must each contain \{caption\}"),
        ({"sources": ONE % "{name: chat, style: alpaca}"}, r"style: 'alpaca' is not a valid ChatStyle"),
        ({"sources": ONE % "{reverse_ratio: 1}"}, r"template needs a name"),
        ({"sources": (ONE % "pair") * 2}, r"names must differ"),
        ({"sources": "\n  - {name: a, paths: [pairs]}"}, r"a: give a weight or epochs"),
        ({"sources": "\n  - {name: a, paths: [pairs], weight: 1, epochs: 1}"}, r"a weight or epochs"),
        ({"sources": "\n  - {name: a, paths: [pairs], weight: -1}"}, r"must be positive, got -1"),
        ({"sources": "\n  - {name: a/b, paths: [pairs], weight: 1}"}, r"source name 'a/b'"),
        ({"sources": "\n  - {name: a, paths: [none], weight: 1}"}, r"no token_shards .*none.*relative to"),
        (
            {"sources": ONE % "pair" + "\n  - {name: b, paths: [pairs], epochs: 1}"},
            r"by weight or by epochs",
        ),
        ({"output": ""}, r"output: a mixture by weight has no end"),
        ({"output": "{ids: 0}"}, r"output\.ids must be positive"),
        ({"output": "{ids: 5, sequences: 5}"}, r"sequences or ids, not both"),
        ({"packing": "{window_documents: 0}"}, r"packing\.window_documents must be at least 1"),
        ({"weight_unit": "bytes"}, r"weight_unit: 'bytes' is none of ids, documents"),
        (
            {"sources": "\n  - {name: a, paths: [pairs], weight: 1, filters: {where: 'x +'}}"},
            r"source a: filters\.where: 'x \+' is no filter expression",
        ),
        (
            {"sources": "\n  - {name: a, paths: [pairs], weight: 1, filters: {where: '__import__(1)'}}"},
            r"is no filter expression",
        ),
        (
            {"sources": ONE.replace("}", ", filters: {min_images: 3, max_images: 1}}") % "pair"},
            r"min_images 3 is above max_images 1",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, str], message: str, corpus: Path) -> None:
    with pytest.raises(MixtureError, match=message) as caught:
        load(corpus, **changes)
    assert str(caught.value).startswith(str(corpus / "mixture.yaml"))


def test_a_key_that_stands_twice(corpus: Path) -> None:
    path = corpus / "mixture.yaml"
    path.write_text(mixture_text() + "seed: 4\n")
    with pytest.raises(MixtureError, match="'seed' stands twice"):
        load_mixture(path)


def test_a_text_tokenizer_that_is_nowhere(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = corpus / "mixture.yaml"
    path.write_text(mixture_text(text_tokenizer="{path: samples/text_tokeniser}"))
    with pytest.raises(TextTokenizerError) as raised:
        load_mixture(path).load_tokenizer()
    assert str(raised.value) == (
        f"{path}: text_tokenizer: samples/text_tokeniser: neither a path here nor a tokenizer on the"
        " Hugging Face hub (not reached, nor in its cache)"
    )


def test_a_file_that_is_no_yaml_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Read me\n\na: 1\n--- b\nBoth need Linux: 3.11 or: newer\n")
    with pytest.raises(MixtureError) as raised:
        load_mixture(path)
    assert str(raised.value).startswith(f"{path} line ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("expression", "fields", "expected"),
    [
        ("similarity > 0.3 and language == 'en'", {"similarity": 0.4, "language": "en"}, True),
        ("similarity > 0.3 and language == 'en'", {"similarity": 0.2, "language": "en"}, False),
        ("similarity > 0.3", {}, False),
        ("not similarity > 0.3", {}, True),
        ("similarity > 0.3", {"similarity": "high"}, False),
        ("0.2 < similarity <= 0.4", {"similarity": 0.4}, True),
        ("language in ['en', 'de']", {"language": "de"}, True),
        ("language not in ['en', 'de']", {"language": "de"}, False),
        ("'cat' in tags", {"tags": ["cat"]}, True),
        ("'cat' in tags", {}, False),
        ("general.nsfw == False", {"general": {"nsfw": False}}, True),
        ("general.nsfw == None", {"general": 3}, True),
        ("a or b", {"b": 1}, True),
        ("score >= -1", {"score": 0}, True),
        ("'a' in tags", {"tags": 5}, False),
        ("'a' not in tags", {"tags": 5}, True),
        ("tag in 'abc'", {"tag": 5}, False),
    ],
)
def test_filter_expressions(expression: str, fields: dict, expected: bool) -> None:
    assert bool(parse_expression(expression, "where")(fields)) == expected


def test_both_instruction_mixtures_differ_in_chat_format_and_tokenizer_alone() -> None:
    """The 14B model reads LLaMA 2's chat format in every source, and trains on what its mixture builds."""
    small, large = (
        yaml.safe_load((ROOT / "recipes" / f"mixture_instruct{size}.yaml").read_text())
        for size in ("", "_14b")
    )
    assert large.pop("text_tokenizer") != small.pop("text_tokenizer")
    for source in small["sources"]:
        template = source["template"]
        source["template"] = {"name": template} if isinstance(template, str) else template
        source["template"]["style"] = "llama2"
    assert large == small
    training = yaml.safe_load((ROOT / "recipes" / "instruct_14b.yaml").read_text())
    recipe = (ROOT / "recipes" / "mixture_instruct_14b.yaml").read_text()
    assert f"--output {training['data']['packed']} " in recipe


def test_the_14b_mixture_writes_inst(tmp_path: Path) -> None:
    """The recipe's own settings on a chat: [INST] round the question, the answer alone learned."""
    recipe = yaml.safe_load((ROOT / "recipes" / "mixture_instruct_14b.yaml").read_text())
    source = next(source for source in recipe["sources"] if source["name"] == "questions")
    settings = {key: value for key, value in source["template"].items() if key != "name"}
    template, kind = TEMPLATES[source["template"]["name"]]
    chat = Document("a", (TextSegment("What is it?", Role.USER), TextSegment("a dog", Role.ASSISTANT)))
    pieces = template(chat, parse_settings(kind, settings), DocumentDraws(0))
    question = "[INST] What is it? Please provide an accurate answer consisting of only one word or phrase."
    assert [(piece.content, piece.is_learned) for piece in pieces] == [
        (f"{question} [/INST]\n", False), ("a dog", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("mixture_*.yaml")), ids=lambda path: path.stem
)
def test_recipes_are_valid(path: Path, tmp_path: Path) -> None:
    """The mixtures that ship parse; their sources are made up here, empty of all but their names."""
    content = yaml.safe_load(path.read_text())
    for source in content["sources"]:
        suffix = {"token_shards": ".parquet"}.get(source.get("format", "token_shards"), ".parquet")
        for pattern in source["paths"]:
            folder = tmp_path / pattern
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"x{suffix}").touch()
    (tmp_path / "mixture.yaml").write_text(path.read_text())
    assert len(load_mixture(tmp_path / "mixture.yaml").files) == len(content["sources"])
