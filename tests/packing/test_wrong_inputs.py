"""What users get wrong in sources: each is named in one line, with file, place and remedy."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.packing.build import Build
from pipeline.packing.cli import main
from pipeline.packing.epoch_range import WHOLE_EPOCH, EpochRange
from pipeline.packing.forecast import forecast
from pipeline.packing.inputs import Chunk
from pipeline.packing.mixture_file import Mixture, load_mixture
from pipeline.packing.render import RenderedBatch
from pipeline.packing.render_task import Renderer, RenderTask, refuse_endless
from pipeline.packing.run_tasks import TaskFailedError
from schemas.document import Document, TextSegment
from schemas.mixture import MixtureError
from schemas.packed_check import check_packed_shard
from schemas.packed_folder import PackedFolder
from tests.packing.corpus import image, make_pairs, mixture_text, write_token_shard


def mixture_of(folder: Path, source: str, **changes: str) -> Mixture:
    path = folder / "mixture.yaml"
    path.write_text(mixture_text(**{"output": "", "sources": f"\n  - {{name: s, {source}}}"} | changes))
    return load_mixture(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as strangers bring them."""
    folder = tmp_path_factory.mktemp("wrong")
    write_token_shard(folder / "pairs" / "0.parquet", make_pairs(40))
    write_token_shard(folder / "none" / "0.parquet", [])
    whole = (folder / "pairs" / "0.parquet").read_bytes()
    (folder / "cut").mkdir()
    (folder / "cut" / "0.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jsonl").write_text("")
    (folder / "list.jsonl").write_text('{"text": "fine"}\n[1, 2]\n')
    (folder / "number.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n')
    (folder / "latin.jsonl").write_bytes('{"text": "caf\u00e9"}\n'.encode("latin-1"))
    (folder / "other.jsonl").write_text('{"body": "a text"}\n')
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    pq.write_table(pa.table({"text": [b"a", b"b"]}), folder / "bytes.parquet")
    long_text = np.random.default_rng(0).bytes(1 << 20).hex()  # more than is hashed whole
    pq.write_table(pa.table({"text": [long_text]}), folder / "footer.parquet")
    data = bytearray((folder / "footer.parquet").read_bytes())
    data[-8 - int.from_bytes(data[-8:-4], "little")] = 0xFF
    (folder / "footer.parquet").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("[none]", r"source s: no document in none/0\.parquet"),
        ("[cut]", r"source s: .*cut/0\.parquet: .*corrupted"),
        ("[footer.parquet], format: parquet", r"source s: .*footer\.parquet: .*thrift"),
        ("[numbers.parquet]", r"source s: .*numbers\.parquet: .*not a token shard"),
        ("[latin.jsonl]", r"no token_shards file \(\*\.parquet\) at .*say format: parquet or jsonl"),
        ("[empty.jsonl], format: jsonl", r"source s: no document in empty\.jsonl"),
        ("[list.jsonl], format: jsonl", r"list\.jsonl: line 2 is no JSON object: it holds a list"),
        ("[number.jsonl], format: jsonl", r"number\.jsonl: line 2: 'text' is int, not text"),
        ("[latin.jsonl], format: jsonl", r"latin\.jsonl: line 1 is no JSON object: 'utf-8'"),
        ("[numbers.parquet], format: parquet", r"column 'text' \(text_field\) is int64, not text"),
        ("[bytes.parquet], format: parquet", r"column 'text' \(text_field\) is binary, not text"),
    ],
)
def test_plan_and_build_name_what_is_wrong(paths: str, message: str, folder: Path, tmp_path: Path) -> None:
    for act in (forecast, lambda mixture: Build(mixture, tmp_path / "out").run()):
        with pytest.raises((MixtureError, TaskFailedError), match=message):
            act(mixture_of(folder, f"paths: {paths}, epochs: 1, template: text"))


@pytest.mark.parametrize("template", ["pair", "instruct_pair"])
def test_damage_is_named_with_the_remedy(
    template: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both ways of reading; in one line of ``plan`` and of ``build``."""
    data = bytearray((folder / "pairs" / "0.parquet").read_bytes())
    metadata = pq.read_metadata(folder / "pairs" / "0.parquet").row_group(0)
    (texts,) = (
        index for index in range(metadata.num_columns) if "texts" in metadata.column(index).path_in_schema
    )
    chunk = metadata.column(texts)
    data[chunk.data_page_offset + chunk.total_compressed_size - 20] ^= 1
    (tmp_path / "0.parquet").write_bytes(data)
    mixture_of(tmp_path, f"paths: [0.parquet], epochs: 1, template: {template}")
    path = str(tmp_path / "mixture.yaml")
    renderer = Renderer(load_mixture(tmp_path / "mixture.yaml"))
    task = RenderTask(Chunk(0, 0, 0, 40, (0,)), EpochRange(0, 0, WHOLE_EPOCH, 1), tmp_path / "items.arrow")
    with pytest.raises(MixtureError, match="delete this token shard"):
        renderer.render(task)
    for command in (["plan", path], ["build", path, "--output", str(tmp_path / "out")]):
        caplog.clear()
        with pytest.raises(SystemExit):
            main(command)
        message = caplog.records[-1].getMessage()
        assert re.search(r"0\.parquet: .*page integrity.*; delete this token shard and run", message)
        assert "\n" not in message


@pytest.mark.parametrize(
    ("amount", "output"), [("weight: 1", "{ids: 5000000}"), ("epochs: 1", ""), ("epochs: 2.5", "")]
)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("paths: [pairs], filters: {min_text_characters: 9999}", "filter_text_too_short"),
        ("paths: [other.jsonl], format: jsonl, template: text", "template_no_text"),
    ],
)
def test_a_source_of_which_nothing_is_left(
    source: str,
    reason: str,
    amount: str,
    output: str,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found in one pass, however many epochs its weight would ask for, and counted once."""
    caplog.set_level("INFO")
    mixture = mixture_of(folder, f"{source}, {amount}", output=output)
    assert forecast(mixture).sources[0].refused[0][0] == reason
    with pytest.raises(
        MixtureError,
        match=rf"s: no document is left of (\d+) \({reason} \1\).*template, filters and text_field",
    ) as error:
        Build(mixture, tmp_path / "out").run()
    num_documents = 40 if "pairs" in source else 1
    assert f"left of {num_documents} " in str(error.value)
    assert caplog.text.count("stage=render") == 1


def test_epochs_that_are_less_than_a_document(folder: Path, tmp_path: Path) -> None:
    mixture = mixture_of(folder, "paths: [pairs], epochs: 0.001")
    with pytest.raises(MixtureError) as caught:
        Build(mixture, tmp_path / "out").run()
    assert str(caught.value) == (
        "source s: epochs: 0.001 of its 40 documents is not one document;"
        " ask for more, or leave the source out"
    )


@pytest.mark.parametrize(
    ("sources", "output", "remedy"),
    [
        ("{name: s, paths: [pairs], epochs: 70000}", "", "epochs"),
        (
            "{name: s, paths: [pairs], weight: 1}, {name: t, paths: [pairs], weight: 1}",
            "{ids: 500000000}",
            "weight",
        ),
    ],
)
def test_more_epochs_than_can_be_told_apart(
    sources: str, output: str, remedy: str, folder: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(folder, "", output=output, sources=f"[{sources}]")
    with pytest.raises(
        MixtureError, match=rf"s: its 40 documents .* 65,536 are possible; lower its {remedy}$"
    ):
        Build(mixture, tmp_path / "out").run()


def test_a_part_of_an_epoch_of_which_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    mixture = mixture_of(folder, "paths: [pairs], epochs: 0.5, template: blend")
    with pytest.raises(MixtureError, match=r"s: no document is left of \d+ \(template_wrong_shape \d+\)"):
        Build(mixture, tmp_path / "out").run()


def test_a_vocabulary_smaller_than_the_tokenizers(folder: Path, tmp_path: Path) -> None:
    mixture = mixture_of(folder, "paths: [pairs], epochs: 1")
    path = mixture.config.text_tokenizer.path
    small = mixture_of(
        folder, "paths: [pairs], epochs: 1", text_tokenizer=f"{{path: {path}, base_vocabulary: 100}}"
    )
    for act in (forecast, lambda one: Build(one, tmp_path / "out").run()):
        with pytest.raises(MixtureError, match=r"base_vocabulary 100 is smaller .*vocab_size in its config"):
            act(small)


def test_nulls_half_characters_and_any_script_are_packed(tmp_path: Path) -> None:
    """A null is an empty text, half a surrogate pair U+FFFD; document marks in a text stay text."""
    strange = "日本語 🙂 عربى </s><img>"
    lines = ['{"text": null}', r'{"text": "lone \ud800 half"}', f'{{"text": "{strange}"}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pq.write_table(pa.table({"text": ["lone \ufffd half", None, strange]}), tmp_path / "a.parquet")
    ids = []
    for kind in ("jsonl", "parquet"):
        mixture = mixture_of(tmp_path, f"paths: [a.{kind}], format: {kind}, epochs: 1, template: text")
        (source,) = Build(mixture, tmp_path / kind).run()["sources"]
        assert (source["documents_packed"], source["documents_refused"]) == (2, {"template_no_text": 1})
        row = PackedFolder(tmp_path / kind)[0]
        ids.append(sorted(map(tuple, np.split(row.ids[: row.num_ids], row.cu_seqlens[1:-1]))))
    assert ids[0] == ids[1]


def test_one_giant_document_in_the_shortest_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [part for index in range(300) for part in (TextSegment(f"text {index} 漢字 🙂 "), image(rng))]
    write_token_shard(tmp_path / "giant" / "0.parquet", [Document("giant", tuple(parts))])
    template = "template: {name: interleaved, max_images: null}"
    mixture = mixture_of(tmp_path, f"paths: [giant], epochs: 1, {template}", seq_length="64")
    (source,) = Build(mixture, tmp_path / "out").run()["sources"]
    assert (source["documents_packed"], source["documents_split"], source["images"]) == (1, 1, 300)
    for path in (tmp_path / "out").glob("packed-*.parquet"):
        check_packed_shard(path)


def test_a_document_of_more_parts_than_can_be_numbered() -> None:
    """2.2 million ids are too many at 64 a row: the document is refused, its neighbours stay."""
    offsets = np.cumsum([0, 3, 2_200_000, 5])
    ids = np.repeat(np.arange(3, dtype=np.uint32), np.diff(offsets))
    counts = Counter[str]()
    batch, rows = refuse_endless(RenderedBatch(ids, ids > 0, offsets), np.array([4, 5, 6]), 64, counts)
    assert (batch.ids.tolist(), batch.offsets.tolist()) == ([0] * 3 + [2] * 5, [0, 3, 8])
    assert (rows.tolist(), counts) == ([4, 6], {"refused:too_many_parts": 1})
    unchanged, _ = refuse_endless(RenderedBatch(ids, ids > 0, offsets), np.array([4, 5, 6]), 128, counts)
    assert len(unchanged.ids) == len(ids)
