"""``seed-pack`` as a user types it: exit statuses, what it prints, what it leaves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.packing.cli import EXIT_FAILED, EXIT_USAGE, main, spell_refusals
from pipeline.packing.forecast import forecast
from pipeline.packing.html_report import write_html_report
from pipeline.packing.mixture_file import load_mixture
from schemas import __version__
from schemas.document import Document, Role, TextSegment
from schemas.packed_folder import PackedFolder
from tests.html_reader import ATTACKS, HtmlPage
from tests.packing.corpus import mixture_text, write_corpus, write_token_shard
from tests.packing.golden_inputs import SAMPLE_TOKENIZER


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    (folder / "mixture.yaml").write_text(mixture_text())
    with pytest.raises(SystemExit) as stop:
        main(["build", str(folder / "mixture.yaml"), "--output", str(folder / "packed")])
    assert stop.value.code == 0
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_plan_agrees_with_the_build(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", corpus / "mixture.yaml", "--global-batch", 10) == 0
    printed = capsys.readouterr().out
    report = json.loads((corpus / "packed" / "report.json").read_bytes())
    assert re.search(r"pairs +1,500 +100\.0%", printed)
    result = forecast(load_mixture(corpus / "mixture.yaml"))
    assert result.sequences == pytest.approx(report["sequences"], rel=0.05)
    assert result.steps(10) == result.sequences // 10
    assert f"{result.steps(10)} steps of 10" in printed
    for source, built in zip(result.sources, report["sources"], strict=True):
        assert source.ids == pytest.approx(built["ids"], rel=0.05)


def test_plan_is_exact_where_it_looks_at_everything(corpus: Path, tmp_path: Path) -> None:
    """Prompts of different lengths are drawn; the forecast draws what the build does."""
    sources = """
  - {name: prose, paths: [prose.jsonl], format: jsonl, epochs: 1, template: text}
  - {name: pairs, paths: [pairs/00000.parquet], epochs: 1, template: instruct_pair}"""
    (corpus / "small.yaml").write_text(mixture_text(output="", sources=sources))
    assert run("build", corpus / "small.yaml", "--output", tmp_path / "packed") == 0
    report = json.loads((tmp_path / "packed" / "report.json").read_bytes())
    result = forecast(load_mixture(corpus / "small.yaml"), 1000)
    assert all(source.is_certain for source in result.sources)
    assert [round(source.ids) for source in result.sources] == [row["ids"] for row in report["sources"]]
    assert result.sequences == pytest.approx(report["sequences"], abs=2)


@pytest.mark.parametrize("task_rows", [100, 10_000])
@pytest.mark.parametrize("kind", ["token_shards", "jsonl", "parquet"])
def test_plan_looks_all_over_sorted_files(kind: str, task_rows: int, tmp_path: Path) -> None:
    """Short documents first, long ones behind: what a head says of them is wrong."""
    texts = [f"text {index} " * (1 + index // 500) for index in range(3000)]
    if kind == "token_shards":
        documents = [Document(str(i), (TextSegment(text),), None) for i, text in enumerate(texts)]
        write_token_shard(tmp_path / "a.parquet", documents)
    elif kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=700)
    path = "a.jsonl" if kind == "jsonl" else "a.parquet"
    source = f"\n  - {{name: a, paths: [{path}], format: {kind}, epochs: 1, template: text}}"
    packing = f"{{task_rows: {task_rows}}}"
    (tmp_path / "m.yaml").write_text(mixture_text(output="", sources=source, packing=packing))
    (sampled,), (whole,) = (forecast(load_mixture(tmp_path / "m.yaml"), size).sources for size in (256, 3000))
    assert (sampled.num_sampled, whole.num_sampled) == (256, 3000)
    assert sampled.ids == pytest.approx(whole.ids, rel=0.03)


def test_plan_says_why_nothing_is_left(
    corpus: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = """
  - {name: pairs, paths: [pairs], epochs: 1, template: pair,
     filters: {where: "similarty > 0.5 and language == 'en'"}}"""
    (corpus / "typo.yaml").write_text(mixture_text(output="", sources=source))
    assert run("plan", corpus / "typo.yaml") == EXIT_USAGE  # as a build of it would
    assert "nothing of the sample is left of pairs, see above: change" in caplog.text
    printed = capsys.readouterr().out
    assert "no document of the sample has similarty, which filters.where names" in printed
    assert "nothing of the sample is left: check template, filters" in printed
    assert "language" not in printed
    assert run("plan", corpus / "typo.yaml", "--sample", 1500) == EXIT_USAGE
    assert "nothing is left of pairs, see above: change" in caplog.text
    (corpus / "typo.yaml").write_text(mixture_text(output="", sources=source.replace("> 0.5", ">> 0.5")))
    assert run("plan", corpus / "typo.yaml") == EXIT_USAGE


def test_plan_goes_on_where_only_the_sample_of_a_source_leaves_nothing(
    corpus: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that keeps one document of 1,500; a build of it is fine."""
    where = "similarity == 0.297 and language == 'en'"
    sources = f"""
  - {{name: rare, paths: [pairs], epochs: 1, template: pair, filters: {{where: "{where}"}}}}
  - {{name: prose, paths: [prose.jsonl], format: jsonl, epochs: 1, template: text}}"""
    (corpus / "rare.yaml").write_text(mixture_text(output="", sources=sources))
    assert run("plan", corpus / "rare.yaml", "--sample", 100) == 0
    assert "source rare: nothing is left of the 100 documents sampled of 1,500" in caplog.text
    assert "--sample 1000 looks at more" in caplog.text
    assert re.search(r"prose .* 100\.0%\n", capsys.readouterr().out)
    caplog.clear()
    assert run("plan", corpus / "rare.yaml", "--sample", 1500) == 0
    assert not caplog.text
    assert run("build", corpus / "rare.yaml", "--output", corpus / "rare") == 0
    assert run("plan", corpus / "rare.yaml", "--sample", 0) == EXIT_USAGE


def test_what_filters_leave_out_is_not_called_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spell_refusals({"filter_where": 1200, "template_no_text": 1, "filter_text_too_long": 3}) == (
        "1,203 left out by filters: filter_where 1,200, filter_text_too_long 3; 1 refused: template_no_text 1"
    )
    source = """
  - {name: pairs, paths: [pairs], epochs: 1, template: pair, filters: {max_text_characters: 60}}"""
    (corpus / "short.yaml").write_text(mixture_text(output="", sources=source))
    assert run("build", corpus / "short.yaml", "--output", tmp_path / "packed") == 0
    printed = capsys.readouterr().out
    assert re.search(r"[\d,]+ left out by filters: filter_text_too_long [\d,]+; 0 refused\n", printed)
    assert run("plan", corpus / "short.yaml") == 0
    assert "of the sample left out by filter_text_too_long" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"seed-pack {__version__}\n"


def test_validate(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", corpus / "packed") == 0
    assert "4 of 4 packed shards are sound" in capsys.readouterr().out


def test_validate_finds_damage(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (corpus / "packed").glob("packed-*.parquet"):
        data = bytearray(path.read_bytes())
        if path.name.endswith("1.parquet"):
            first_ids = PackedFolder(corpus / "packed")[
                PackedFolder(corpus / "packed").footers[0].num_sequences
            ]
            start = bytes(data).index(first_ids.ids.tobytes())
            data[start] ^= 1  # another id of the vocabulary
        (tmp_path / path.name).write_bytes(data)
    assert run("validate", tmp_path) == EXIT_FAILED
    printed = capsys.readouterr().out
    assert re.search(
        r"packed-00001\.parquet: .*page integrity.*; it was damaged after it was written", printed
    )
    assert "3 of 4 packed shards are sound" in printed


def test_show_from_elsewhere_names_the_root(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing printed before the error."""
    shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "at" / "words")
    source = "\n  - {name: prose, paths: [prose.jsonl], format: jsonl, epochs: 1, template: text}"
    shutil.copy(corpus / "prose.jsonl", tmp_path / "at")
    text = mixture_text(output="", sources=source, text_tokenizer="{path: words}")
    (tmp_path / "at" / "m.yaml").write_text(text)
    assert run("build", tmp_path / "at" / "m.yaml", "--output", tmp_path / "packed") == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert run("show", "packed") == EXIT_USAGE
    assert not capsys.readouterr().out
    assert "--root FOLDER-OF-THE-MIXTURE-FILE" in caplog.text
    assert run("show", "packed", "--root", "at") == 0
    assert "[prose] <s>" in capsys.readouterr().out


def test_show_emphasises_what_is_learned(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert run("show", corpus / "packed", "--limit", 2, "--root", corpus) == 0
    printed = capsys.readouterr().out
    assert "--- row 0:" in printed
    assert "[pairs] <s>**" in printed
    assert re.search(r"\[image: pair-\d{6}\]", printed)
    assert "</s>**" in printed
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("show", corpus / "packed", "--limit", 2, "--root", corpus) == 0
    on_terminal = capsys.readouterr().out
    assert on_terminal.replace("\x1b[1m", "**").replace("\x1b[0m", "**") == printed


def test_trace_leads_back_to_the_source(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", corpus / "packed", "--limit", 20, "--trace", "--root", corpus) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pairs")]
    assert lines
    for line in lines:
        _, place, key, *_ = line.split("\t")
        shard, row = re.fullmatch(r"pairs/0000(\d)\.parquet:(\d+)", place).groups()
        assert key == f"key pair-{int(row) * 3 + int(shard):06d}"


def test_report_draws_every_source(corpus: Path) -> None:
    assert run("report", corpus / "packed") == 0
    page = HtmlPage((corpus / "packed" / "report.html").read_text())
    page.check_needs_nothing_else()
    charts = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert [str(chart).split(";")[0].split(":")[0] for chart in charts] == [
        "Share of the ids by source", "Share of the ids so far", "Documents by length", "Rows by padding"
    ]  # fmt: skip
    folder = PackedFolder(corpus / "packed")
    rows = [folder[row] for row in range(len(folder))]
    titles = re.findall(r"<title>[\d,]+ to [\d,]+: ([\d,]+)</title>", page.source)
    heights = [int(number.replace(",", "")) for number in titles]
    assert sum(heights) == sum(len(row.sources) for row in rows) + len(rows), "a document or row is not drawn"
    for source in json.loads((corpus / "packed" / "report.json").read_bytes())["sources"]:
        assert f"{source['ids']:,}" in page.text


def test_report_escapes_names(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "packed").glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    text = (corpus / "packed" / "report.json").read_text()
    report = json.loads(text)
    report["mixture"] = ATTACKS[0]
    for source, attack in zip(report["sources"], ATTACKS[1:], strict=True):
        source["name"], source["documents_refused"] = attack, {attack: 1}
    (tmp_path / "report.json").write_text(json.dumps(report))
    page = HtmlPage(write_html_report(tmp_path).read_text())
    page.check_needs_nothing_else()
    assert "img" not in {tag for tag, _ in page.tags}
    assert all(attack in page.text for attack in ATTACKS)


def test_export(corpus: Path, tmp_path: Path) -> None:
    assert run("export", corpus / "packed", "--output", tmp_path / "seed") == 0
    assert np.fromfile(tmp_path / "seed.bin", "<u2").size == PackedFolder(corpus / "packed").num_ids


def test_export_of_a_chat_says_that_megatron_learns_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    segments = (TextSegment("What is it?", Role.USER), TextSegment("A cat.", Role.ASSISTANT))
    write_token_shard(tmp_path / "chats" / "0.parquet", [Document("chat", segments)] * 20)
    source = "\n  - {name: chats, paths: [chats], epochs: 1, template: chat}"
    (tmp_path / "chats.yaml").write_text(mixture_text(output="", sources=source))
    assert run("build", tmp_path / "chats.yaml", "--output", tmp_path / "packed") == 0
    report = json.loads((tmp_path / "packed" / "report.json").read_bytes())["sources"][0]
    learned, ids = f"{report['ids_learned']:,}", f"{report['ids']:,}"
    export = ("export", tmp_path / "packed", "--output", tmp_path / "seed")
    assert run(*export) == EXIT_USAGE
    assert f"{learned} of {ids} ids are learned, and Megatron would learn all" in caplog.text
    assert not list(tmp_path.glob("seed*"))
    capsys.readouterr()
    assert run(*export, "--loss-mask", "none") == 0
    printed = capsys.readouterr().out
    assert f"20 documents, {ids} ids" in printed
    assert f"{learned} of them are learned" in printed
    assert run(*export, "--loss-mask", "file") == 0
    assert np.fromfile(tmp_path / "seed_loss_mask.bin", "u1").sum() == report["ids_learned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["validate", "nowhere"], "seed-pack build"),
        (["show", "PACKED", "--row", "-1"], "sequence -1 is outside"),
    ],
)
def test_wrong_input_exits_with_2(
    arguments: list[str], message: str, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = [str(corpus / "packed") if word == "PACKED" else word for word in arguments]
    assert run(*arguments) == EXIT_USAGE
    assert message in caplog.text


def test_an_output_that_cannot_be_written(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    output = tmp_path / "file" / "packed"
    assert run("build", corpus / "mixture.yaml", "--output", output) == EXIT_USAGE
    assert f"error: --output {output}: cannot be written: " in caplog.text
    assert "choose another folder" in caplog.text


@pytest.mark.parametrize("command", ["show", "validate", "report"])
def test_a_folder_that_is_no_packed_set(
    command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(command, tmp_path / "nowhere") == EXIT_USAGE
    assert f"{tmp_path / 'nowhere'}: no such folder" in caplog.text
    (tmp_path / "_dataset.json").write_text("{}")
    assert run(command, tmp_path) == EXIT_USAGE
    assert f"{tmp_path}: token shards, no packed set; look at them with `seed-shards show" in caplog.text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("plan", "build", "validate", "show", "report", "export"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plna", "mixture.yaml"], "error: plna: unknown command; did you mean 'plan'?"),
        (
            ["plan", "mixture.yaml", "--global-bathc", "3"],
            "Unrecognized options: --global-bathc, 3; did you mean --global-batch?",
        ),
        (["build", "mixture.yaml"], "error: Missing from seed-pack build: --output"),
        ([], "error: Expected one of {plan, build, "),
    ],
)
def test_a_mistyped_command_line_is_told_in_one_line(
    arguments: list[str], message: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == EXIT_USAGE
    (line,) = caplog.messages
    assert message in line
    assert "\n" not in line
    assert capsys.readouterr().out == ""
