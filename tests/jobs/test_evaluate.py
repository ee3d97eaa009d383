"""The evaluation job: scores of files, reports, and refusals that name the line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.config_file import parse_config
from jobs.evaluate import main
from jobs.tokenize_chats import main as tokenize_chats
from jobs.tokenize_pairs import PairsJobConfig
from pipeline.training_pairs import PairDataConfig
from schemas.packed_shard import TextTokenizerIdentity
from schemas.token_shard import read_documents
from schemas.vocabulary import VocabularyLayout
from tests.schemas.packed_rows import make_sequences, write_packed
from tests.trainer.runs import TEXT_TOKENIZER, trained_export
from tokenizer.checkpoint import load_tokenizer
from tokenizer.text_tokenizer import TextTokenizer, text_tokenizer_hashes
from trainer.answering import AnsweringModel
from trainer.generate import SamplingConfig, generate
from trainer.load_model import load_model
from trainer.prompt import decode_contents

SAMPLES = Path(__file__).parents[2] / "samples"
HELD_OUT = SAMPLES / "tokens_emoji" / "held_out"

CAPTION = {"caption": "A red fish swims.", "references": ["a red fish swims", "red fish"]}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [CAPTION, {"caption": "blue hat", "references": ["a green tree in the garden"]}]
    file = write(tmp_path / "captions.jsonl", rows)
    assert main(["captions", "--input", str(file), "--output", str(tmp_path / "result")]) == 0
    table = json.loads((tmp_path / "result.json").read_text())["results"]["captions"]
    assert table["captions"] == 2
    assert 0 < table["BLEU-1"] < 100
    assert table["CIDEr-D"] > 100
    assert (tmp_path / "result.md").read_text() in capsys.readouterr().out


def test_answers(tmp_path: Path) -> None:
    rows = [{"answer": "Two", "annotators": ["2"] * 9 + ["3"]}, {"answer": "no", "annotators": ["yes"] * 10}]
    main(["answers", "--input", str(write(tmp_path / "a.jsonl", rows)), "--output", str(tmp_path / "result")])
    table = json.loads((tmp_path / "result.json").read_text())["results"]["answers"]
    assert table == {"VQA accuracy %": 50, "exact match %": 50, "answers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its text tokenizer inside, after two steps on rows whose document marks are unusual."""
    sha256 = text_tokenizer_hashes(str(TEXT_TOKENIZER), 5, 6)[0]
    identity = TextTokenizerIdentity("sample", sha256, bos_id=5, eos_id=6)
    return trained_export(tmp_path_factory.mktemp("evaluated"), tokenizer=identity) / "model"


def evaluate(what: str, model: Path, tokens: Path, output: Path, *more: str) -> dict[str, dict[str, float]]:
    flags = ["--model", str(model), "--tokens", str(tokens), "--output", str(output), "--device", "cpu"]
    assert main([what, *flags, *more]) == 0
    return json.loads(output.with_name(f"{output.name}.json").read_text())["results"]


def test_language_on_rows_of_the_models_own_kind(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of another vocabulary, or of codes of another tokenizer, would give figures that mean nothing."""
    packed = model.parents[1] / "packed"
    flags = ["language", "--model", str(model), "--output", str(tmp_path / "result"), "--packed"]
    assert main([*flags, str(packed)]) == 0
    assert "language model" in json.loads((tmp_path / "result.json").read_text())["results"]
    layout = TextTokenizer(TEXT_TOKENIZER).layout
    for name, changes, message in (
        (
            "ids",
            {"vocabulary": VocabularyLayout(layout.base_size + 50)},
            "text tokenizer of the model's data",
        ),
        ("codes", {"vocabulary": layout, "codebooks": {"coyo": "12" * 16}}, "has 121212121212..."),
    ):
        (tmp_path / name).mkdir()
        rows = make_sequences(4, 0, changes["vocabulary"])
        write_packed(tmp_path / name / "packed-00000.parquet", rows, **changes)
        assert main([*flags, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_captioning_of_token_shards(model: Path, tmp_path: Path) -> None:
    """The captions are those of the generate job for the same codes, with the marks of the export."""
    flags = ["--where", "not skin_tone", "--limit", "3", "--sampling.max-new-ids", "12"]
    table = evaluate("captioning", model, HELD_OUT, tmp_path / "captioning", *flags)["captions"]
    rows = [json.loads(line) for line in (tmp_path / "captioning.jsonl").read_text().splitlines()]
    assert table["captions"] == len(rows) == 3
    shown = {document.key: document for document in read_documents(HELD_OUT / "held_out.parquet")}
    answering = AnsweringModel.load(model, device="cpu")
    assert (answering.tokenizer.bos_id, answering.tokenizer.eos_id) == (5, 6)
    greedy = SamplingConfig(temperature=0.0, max_new_ids=12)
    for row in rows:
        assert row["references"] == shown[row["key"]].texts
        assert answering.texts([[shown[row["key"]].images[0].codes]], greedy) == [row["caption"]]


def test_prompts_begin_and_answers_end_with_the_marks_of_the_export(model: Path, tmp_path: Path) -> None:
    """An export that names other marks answers as `generate` does for ids that begin and end with these."""
    document = next(iter(read_documents(HELD_OUT / "held_out.parquet")))
    network, layout = load_model(model)
    tokenizer = TextTokenizer(model)
    span = layout.image_span(document.images[0].codes)
    greedy = SamplingConfig(temperature=0.0, max_new_ids=24)

    def answer(bos_id: int, eos_id: int) -> list[int]:
        return generate(network, [np.concatenate([[bos_id], span])], layout, eos_id, greedy)[0]

    with_own_marks = answer(tokenizer.bos_id, tokenizer.eos_id)
    bos_id = next(value for value in range(7, 500) if answer(value, 6) != with_own_marks)
    eos_id = next(value for value in reversed(answer(bos_id, 6)) if 2 < value < layout.base_size)
    marked = tmp_path / "marked"
    shutil.copytree(model, marked)
    fields = json.loads((marked / "config.json").read_text())
    (marked / "config.json").write_text(json.dumps(fields | {"bos_token_id": bos_id, "eos_token_id": eos_id}))
    flags = ["--limit", "1", "--sampling.max-new-ids", "24"]
    evaluate("captioning", marked, HELD_OUT, tmp_path / "captioning", *flags)
    expected = answer(bos_id, eos_id)
    assert len(expected) < len(answer(bos_id, 6)), "the answer ended early"
    tokenizer.use_marks(bos_id, eos_id)
    parts = [part.strip() for part in decode_contents(expected, tokenizer, layout) if isinstance(part, str)]
    assert json.loads((tmp_path / "captioning.jsonl").read_text())["caption"] == " ".join(parts).strip()


def test_questions_of_token_shards(model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "chats"
    arguments = [
        "--input",
        str(SAMPLES / "chats" / "00000.tar"),
        "--output",
        str(tokens),
        "--num-actors",
        "0",
    ]
    assert tokenize_chats([*arguments, "--tokenizer", "sample", "--decode-workers", "0"]) == 0
    flags = ["--limit", "1", "--sampling.max-new-ids", "8"]
    table = evaluate("questions", model, tokens, tmp_path / "questions", *flags)["answers"]
    assert table["answers"] == 1
    row = json.loads((tmp_path / "questions.jsonl").read_text())
    assert row["question"] == "What is in this picture?"
    assert row["annotators"] == ["A wedge of yellow cheese with round holes, drawn on a white background."]
    assert "\n" not in row["answer"]


def test_drawing_of_token_shards(model: Path, tmp_path: Path) -> None:
    pictures = ["--pictures", str(SAMPLES / "emoji" / "held_out.tar"), "--limit", "12"]
    pictures += ["--gallery", str(tmp_path / "pictures")]
    tables = evaluate("drawing", model, HELD_OUT, tmp_path / "drawing", *pictures)
    (title,) = (name for name in tables if name.startswith("codes drawn"))
    assert title == "codes drawn from 3 captions"  # of twelve, every fourth has its picture in samples/
    assert tables["images drawn constrained, percent"]["sound"] == 100
    rows = [json.loads(line) for line in (tmp_path / "drawing.jsonl").read_text().splitlines()]
    num_codes = load_tokenizer("sample").config.n_embed
    assert all(max(row["codes"]) < num_codes for row in rows)
    for name in ("drawn", "original"):
        assert len(list((tmp_path / "pictures" / name).glob("*.png"))) == 3


def test_pictures_of_other_documents_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(model), "--tokens", str(HELD_OUT), "--output", str(tmp_path / "drawing")]
    others = str(SAMPLES / "pairs" / "00000.tar")
    assert main(["drawing", *flags, "--device", "cpu", "--limit", "12", "--pictures", others]) == 2
    assert f"--pictures {others}: no sample has the key of a document" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CAPTION, ["no object"]], r"c\.jsonl:2: expected a JSON object"),
        ([CAPTION, {"caption": "x"}], "row 2: expected a string 'caption'"),
        ([{"caption": "x", "references": []}], "row 1: 'references' must hold"),
        ([], "no rows"),
    ],
)
def test_bad_rows_are_named(
    rows: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "c.jsonl", rows)
    assert main(["captions", "--input", str(file), "--output", str(tmp_path / "o")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o.json").exists()


def test_config_files_are_strict_and_overridable(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("input: [a.tar, b.tar]\npreprocess: {color: clean}\nheld_out_fraction: 0.5\n")
    config = parse_config(PairDataConfig, ["--config", str(path), "--held-out-fraction", "0.25"])
    assert config.input == ("a.tar", "b.tar")
    assert config.preprocess.color == "clean"
    assert config.held_out_fraction == 0.25
    path.write_text("preprocess: {colour: clean}\n")
    with pytest.raises(
        ValueError, match=r"data.yaml: preprocess.colour: unknown setting; did you mean 'color'"
    ):
        parse_config(PairDataConfig, ["--config", str(path)])
    path.write_text("held_out_fraction: 2\n")
    with pytest.raises(ValueError, match=r"data\.yaml.*held_out_fraction"):
        parse_config(PairDataConfig, ["--config", str(path)])
    with pytest.raises(
        ValueError,
        match=r"^Missing from [^;]*--input [^;]*\(required\); Unrecognized options: --inptu a.tar$",
    ):
        parse_config(PairsJobConfig, ["--inptu", "a.tar", "--output", "tokens"])
