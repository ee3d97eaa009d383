"""The generate job: pictures, codes and text in, text and codes out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.generate import main
from schemas.document import check_codes
from schemas.packed_shard import TextTokenizerIdentity
from schemas.vocabulary import VocabularyLayout
from tests.trainer.runs import TEXT_TOKENIZER, trained_export
from tokenizer.checkpoint import load_tokenizer
from tokenizer.detokenizer import load_detokenizer
from tokenizer.text_tokenizer import TextTokenizer
from trainer.contact_sheet import Cell, contact_sheet
from trainer.huggingface import MixtureMarks
from trainer.load_model import load_marks

SAMPLES = TEXT_TOKENIZER.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its export; what it says means nothing."""
    return trained_export(tmp_path_factory.mktemp("generate"))


def flags(model: Path, *more: str) -> list[str]:
    common = [
        "--text-tokenizer",
        str(TEXT_TOKENIZER),
        "--sampling.max-new-ids",
        "72",
        "--tokenizer",
        "sample",
    ]
    return ["--model", str(model), "--tokenizer", "sample", *common, *more]


def answers(path: Path) -> list[list[object]]:
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def test_prompts_of_a_file(model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "codes.npy", np.arange(32, dtype=np.uint16))
    prompts = [
        ["A dog"],
        [{"image": str(tmp_path / "a.png")}, "shows"],
        ["like", {"codes": list(range(32))}, {"image": str(tmp_path / "codes.npy")}],
    ]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (tmp_path / "in.jsonl").write_text(lines)
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(flags(model / "model", *files, "--sampling.forces-image")) == 0
    found = answers(tmp_path / "out.jsonl")
    assert len(found) == 3
    for answer in found:
        assert isinstance(answer[0], dict)
        check_codes(np.array(answer[0]["codes"], np.uint16))


def test_answers_do_not_depend_on_the_batch_size(model: Path, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": ["A dog"]}) + "\n" for _ in range(4))
    (tmp_path / "in.jsonl").write_text(lines)
    for size in ("1", "4"):
        output = [
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / size),
            "--batch-size",
            size,
        ]
        assert main(flags(model / "model", *output, "--force-image")) == 0
    assert answers(tmp_path / "1") == answers(tmp_path / "4")
    assert len({json.dumps(answer) for answer in answers(tmp_path / "1")}) == 4, "each row draws its own"
    assert all(isinstance(answer[0], dict) for answer in answers(tmp_path / "1")), "--force-image"


def test_a_mixture_with_its_own_vocabulary_size_and_marks(tmp_path: Path) -> None:
    """``base_vocabulary`` beyond the tokenizer's ids, and other marks: kept in checkpoint and export."""
    layout = VocabularyLayout(TextTokenizer(TEXT_TOKENIZER).base_size + 56)
    identity = TextTokenizerIdentity("sample", "ab" * 32, bos_id=5, eos_id=6)
    run = trained_export(tmp_path, text_tokenizer="", vocabulary=layout, tokenizer=identity)
    for folder in (run / "model", run / "checkpoints" / "step-00000002"):
        output = tmp_path / f"{folder.name}.jsonl"
        assert main(flags(folder, "--prompt", "A dog", "--output", str(output))) == 0
        assert load_marks(folder) == MixtureMarks(5, 6, load_tokenizer("sample").codebook_hex, 1024)
        assert len(answers(output)) == 1
    fields = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (5, 6)


def test_a_tokenizer_with_another_codebook_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its codes would mean something else to the model: for pictures of prompts, and for drawings."""
    run = trained_export(tmp_path, codebooks={"coyo": "ef" * 16})
    Image.new("RGB", (60, 80)).save(tmp_path / "a.png")
    message = "trained on image codes of codebook efefefefefef..., --tokenizer sample has"
    for folder in (run / "model", run / "checkpoints" / "step-00000002"):
        for more in (
            ["--prompt", "<image> is", "--images", str(tmp_path / "a.png")],
            ["--prompt", "A dog", "--gallery", str(tmp_path / "gallery")],
        ):
            assert main(flags(folder, *more)) == 2
            assert message in capsys.readouterr().err
    assert not (tmp_path / "gallery").exists()


@pytest.mark.parametrize(
    ("footer", "remedy"),
    [
        ({}, "give --tokenizer sample\n"),
        (
            {"codebooks": {"coyo": "ef" * 16}, "num_codes": 512},
            "give --tokenizer FOLDER, the tokenizer of",
        ),
    ],
)
def test_the_release_is_not_fetched_for_a_model_of_other_codes(
    footer: dict[str, Any],
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(repo: str, *_: object) -> Path:
        raise AssertionError(f"{repo} was asked for")

    monkeypatch.setattr("tokenizer.hub._download", refuse)
    run = trained_export(tmp_path, **footer)
    Image.new("RGB", (60, 80)).save(tmp_path / "a.png")
    for folder in (run / "model", run / "checkpoints" / "step-00000002"):
        for more in (
            ["--prompt", "<image> is", "--images", str(tmp_path / "a.png")],
            ["--prompt", "A dog", "--gallery", str(tmp_path / "gallery")],
        ):
            assert main(["--model", str(folder), "--text-tokenizer", str(TEXT_TOKENIZER), *more]) == 2
            said = capsys.readouterr().err
            assert f"{folder} was trained on image codes that --tokenizer seed-2 did not make" in said
            assert remedy in said


def test_an_image_tokenizer_that_is_not_there_is_an_error_even_where_it_is_not_needed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tokenizer", "no/such/path", "--prompt", "A dog"]
    assert main([*flags(model / "model"), *given]) == 2
    assert "tokenizer 'no/such/path' not found" in capsys.readouterr().err


def test_one_prompt_with_a_checkpoint(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.arange(32, dtype=np.uint16))
    prompt = ["--prompt", "<image> is", "--images", str(tmp_path / "codes.npy")]
    for folder in (model / "model", model / "checkpoints" / "step-00000002"):
        output = ["--output", str(tmp_path / f"{folder.name}.jsonl"), "--sampling.temperature", "0"]
        assert main(flags(folder, *prompt, *output)) == 0
    # The export is in bf16, so the two may part; each gives one answer.
    assert len(answers(tmp_path / "model.jsonl")) == len(answers(tmp_path / "step-00000002.jsonl")) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "<image> is"], "the prompt has 1 <image>, --images 0"),
        ([], "give either --prompt or --input"),
        (["--input", "nowhere.jsonl"], "--input nowhere.jsonl: cannot be read: No such file or directory\n"),
        (["--input", f"{SAMPLES}/emoji/prompt.jsonl"], f"did you mean {SAMPLES}/emoji/prompts.jsonl?\n"),
    ],
)
def test_wrong_input_is_named(
    model: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(model / "model", *more)) == 2
    assert message in capsys.readouterr().err


def test_only_codes_of_the_models_codebook_are_drawn(model: Path, tmp_path: Path) -> None:
    """No tokenizer is loaded for that: the model knows how many there are."""
    lines = "".join(json.dumps({"prompt": ["A dog"]}) + "\n" for _ in range(8))
    (tmp_path / "in.jsonl").write_text(lines)
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*flags(model / "model", *files, "--force-image"), "--sampling.temperature", "5"]) == 0
    drawn = [
        part["codes"] for answer in answers(tmp_path / "out.jsonl") for part in answer if "codes" in part
    ]
    assert 512 < np.max(drawn) < 1024


def test_a_prompt_in_one_string_is_that_of_the_command_line(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.arange(32, dtype=np.uint16))
    line = {"prompt": "A dog, <image> too", "images": [str(tmp_path / "codes.npy")]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    typed = ["--prompt", line["prompt"], "--images", *line["images"]]
    for name, given in (("file", ["--input", str(tmp_path / "in.jsonl")]), ("typed", typed)):
        assert main(flags(model / "model", *given, "--output", str(tmp_path / name))) == 0
    assert answers(tmp_path / "file") == answers(tmp_path / "typed")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "A dog", "imgs": []}, "line 1: unknown field 'imgs'; known: prompt, images"),
        ({"promt": "A dog"}, 'expected an object with "prompt"'),
        ({"prompt": ["A dog"], "images": ["a.png"]}, '"images" goes with a prompt that is one string'),
        ({"prompt": "<image> is"}, "the prompt has 1 <image>, --images 0"),
    ],
)
def test_lines_that_are_no_prompt(
    line: object, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    assert main(flags(model / "model", "--input", str(tmp_path / "in.jsonl"))) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_taken_for_its_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(model, "--prompt", "A dog")) == 2
    assert "it is a training run's: give the folder model in it" in capsys.readouterr().err


@pytest.mark.parametrize("code", [-1, 8192, 70_000, 1.5])
def test_codes_of_a_prompt_that_are_none(
    code: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": [{"codes": [code, *range(31)]}]}))
    assert main(flags(model / "model", "--input", str(tmp_path / "in.jsonl"))) == 2
    assert "in.jsonl line 1: codes must be integers from 0 to 8191" in capsys.readouterr().err


def test_a_text_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"intermediate_size": 8}))
    assert main(flags(tmp_path, "--prompt", "a")) == 2
    assert "names no seed_vocabulary" in capsys.readouterr().err


def test_a_gallery_of_drawings_and_captions(model: Path, tmp_path: Path) -> None:
    """Each line says for itself whether it wants a picture; what is drawn is what the pixel decoder draws."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "a.png")
    source = str(tmp_path / "a.png")
    prompts = [
        {"prompt": ["A dog"], "forces_image": True, "picture": source, "note": "seen"},
        {"prompt": [{"image": source}]},
        {"prompt": ["A cat"], "forces_image": True},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    gallery = ["--gallery", str(tmp_path / "gallery"), "--color", "clean"]
    assert main([*flags(model / "model", *files, *gallery), "--sampling.max-new-ids", "34"]) == 0
    found = answers(tmp_path / "out.jsonl")
    detokenizer = load_detokenizer("sample")
    for number in (0, 2):
        codes = np.array(found[number][0]["codes"])
        assert codes.max() < detokenizer.tokenizer.config.n_embed
        drawn = np.asarray(Image.open(tmp_path / "gallery" / f"{number:03d}.png"))
        assert np.array_equal(drawn, detokenizer.draw(codes[None])[0])
    with Image.open(tmp_path / "gallery" / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    side, gap = 192, 20
    shown = np.asarray(Image.open(tmp_path / "gallery" / "000.png").resize((side, side)))
    drawn_cell = pixels[gap : gap + side, 2 * gap + side : 2 * gap + 2 * side]
    assert np.abs(drawn_cell.astype(int) - shown.astype(int)).max() <= 1
    captioned = np.hsplit(pixels[gap // 2 : gap // 2 + side + gap], 2)[1]
    assert (captioned[:, 2 * gap + side : 2 * gap + 2 * side] == 255).all(), "no frame around no drawing"


def test_words_on_a_contact_sheet_stand_apart() -> None:
    """The gap between two words is wider than those between letters, of which none is empty for long."""
    sheet = np.asarray(contact_sheet([Cell(None, None, "fox face", "")]))
    is_inked = (sheet < 200).any(axis=(0, 2))
    inked = np.flatnonzero(is_inked)
    gaps = sorted(np.diff(inked))
    assert gaps[-1] >= 5 > gaps[-2], "one gap, between the words"


def test_a_contact_sheet_needs_prompts() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        contact_sheet([])
