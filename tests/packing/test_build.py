"""The build: nothing lost or doubled, the same bytes whoever does the work and however often it is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.packing.build import Build
from pipeline.packing.build_folder import BuildError, claim_folder
from pipeline.packing.draws import DocumentDraws, row_keys, stable_hash
from pipeline.packing.html_report import write_html_report
from pipeline.packing.input_identity import HASHED_WHOLE_BYTES, content_identity
from pipeline.packing.mixture_file import Mixture, load_mixture, template_settings
from pipeline.packing.render import render
from pipeline.packing.rendered import ItemsFile
from pipeline.packing.run_tasks import Executor, TaskFailedError
from pipeline.packing.templates import TEMPLATES
from schemas.document import Document, ImageSegment
from schemas.fingerprint import Fingerprint
from schemas.mixture import MixtureError
from schemas.packed_check import check_packed_shard
from schemas.packed_folder import PackedFolder
from schemas.token_shard import read_documents
from tests.packing.corpus import ROOT, make_pairs, mixture_text, write_corpus, write_token_shard
from tests.packing.golden_inputs import SAMPLE_TOKENIZER

PAIRS_ONCE = "\n  - {name: pairs, paths: [pairs], epochs: %s, template: {name: pair, reverse_ratio: 0.5}}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def write_mixture(corpus: Path, name: str, **changes: str) -> Mixture:
    path = corpus / f"{name}.yaml"
    path.write_text(mixture_text(**changes))
    return load_mixture(path)


@pytest.fixture(scope="module")
def built(corpus: Path) -> tuple[Mixture, Path, dict[str, Any]]:
    """A build of three sources by weight, in this process."""
    mixture = write_mixture(corpus, "weights")
    output = corpus / "weights"
    return mixture, output, Build(mixture, output).run()


def packed_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("packed-*.parquet"))}


def places_of(folder: PackedFolder) -> list[tuple[int, str, int, int, int]]:
    """(source, file, row, epoch, part) of everything packed."""
    places = []
    for index in range(len(folder)):
        sequence = folder.with_origins(index)
        origins = sequence.origins
        assert origins is not None
        columns = (origins.rows, origins.epochs, origins.parts)
        places += zip(
            sequence.sources.tolist(), origins.shards, *(part.tolist() for part in columns), strict=True
        )
    return places


def test_packed_shards_keep_the_contract(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    _, output, report = built
    footers = [check_packed_shard(path) for path in sorted(output.glob("packed-*.parquet"))]
    assert sum(footer.num_sequences for footer in footers) == report["sequences"] == len(PackedFolder(output))
    assert not (output / ".build").exists()


def test_nothing_is_lost_or_doubled(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    _, output, report = built
    folder = PackedFolder(output)
    places = places_of(folder)
    assert len(set(places)) == len(places)
    wholes = Counter(source for source, _, _, _, part in places if part == 0)
    for index, source in enumerate(report["sources"]):
        assert wholes[index] == source["documents_packed"]
        refused = sum(source["documents_refused"].values())
        assert source["documents_in"] == wholes[index] + refused + source["documents_left_over"]
    assert report["ids"] + report["padding"] == report["sequences"] * 512


def test_the_documents_of_a_row_stand_grouped_by_source(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    packed = PackedFolder(built[1])
    assert all(np.all(np.diff(packed[row].sources.astype(int)) >= 0) for row in range(len(packed)))


def test_a_budget_leaves_no_document_without_its_end(corpus: Path) -> None:
    """Pages of many parts and a budget that ends within one: ids rendered = packed + left over."""
    sources = "\n  - {name: pages, paths: [pages/*.parquet], weight: 1.0, template: interleaved}"
    for num_ids in (9000, 9500, 10500):
        mixture = write_mixture(corpus, f"tails{num_ids}", sources=sources, output=f"{{ids: {num_ids}}}")
        output = corpus / f"tails{num_ids}"
        (source,) = Build(mixture, output).run()["sources"]
        tokenizer, ends = mixture.load_tokenizer(), 0
        for sequence in map(PackedFolder(output).__getitem__, range(len(PackedFolder(output)))):
            ends += int(np.count_nonzero(sequence.ids[sequence.cu_seqlens[1:] - 1] == tokenizer.eos_id))
        assert ends == source["documents_packed"] > 0
        assert source["documents_split"] > 0
        assert source["ids"] <= num_ids
        assert source["ids_left_over"] > 0


def test_every_document_can_be_traced_and_rendered_again(
    built: tuple[Mixture, Path, dict[str, Any]],
) -> None:
    """Ids and learned positions of packed documents are those of its template on its source row."""
    mixture, output, _ = built
    folder, tokenizer = PackedFolder(output), mixture.load_tokenizer()
    parts: dict[tuple[int, str, int, int], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for index in range(len(folder)):
        sequence = folder.with_origins(index)
        mask = sequence.loss_mask
        for document in range(len(sequence.sources)):
            span = slice(*sequence.cu_seqlens[document : document + 2])
            where = sequence.origins
            key = (
                int(sequence.sources[document]), where.shards[document],
                int(where.rows[document]), int(where.epochs[document]),
            )  # fmt: skip
            parts.setdefault(key, {})[int(where.parts[document])] = (sequence.ids[span], mask[span])
    shards = {
        name: list(read_documents(mixture.path(name))) for name in [*mixture.files[0], *mixture.files[1]]
    }
    num_checked = 0
    for (source, name, row, epoch), pieces in parts.items():
        if source == 2 or sorted(pieces) != list(range(len(pieces))):
            continue  # prose is no token shard; the last document may be cut off by the output's size
        config = mixture.config.sources[source]
        key = row_keys(stable_hash(7, config.name, name, epoch), row, 1)[0]
        template = TEMPLATES[config.template][0]
        rendered = template(shards[name][row], template_settings(config), DocumentDraws(int(key)))
        ids, mask = render([rendered], tokenizer, folder.vocabulary).document(0)
        packed_ids = np.concatenate([pieces[part][0] for part in sorted(pieces)])
        if len(packed_ids) < len(ids):
            continue
        assert np.array_equal(packed_ids, ids)
        starts = np.cumsum([0, *(len(pieces[part][0]) for part in sorted(pieces))])[:-1]
        mask[starts] = False
        assert np.array_equal(np.concatenate([pieces[part][1] for part in sorted(pieces)]), mask)
        num_checked += 1
    assert num_checked > 1000


def test_only_documents_longer_than_a_row_are_split(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    _, output, _ = built
    folder = PackedFolder(output)
    lengths: Counter[tuple[int, str, int, int]] = Counter()
    split = set()
    for index in range(len(folder)):
        sequence = folder.with_origins(index)
        where = sequence.origins
        for document, length in enumerate(np.diff(sequence.cu_seqlens).tolist()):
            key = (
                int(sequence.sources[document]), where.shards[document],
                int(where.rows[document]), int(where.epochs[document]),
            )  # fmt: skip
            lengths[key] += length
            if where.parts[document]:
                split.add(key)
    assert len(split) > 5
    assert all(lengths[key] > 512 for key in split)


def test_shares_follow_the_weights_at_every_prefix(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    _, output, _ = built
    folder = PackedFolder(output)
    taken = np.zeros(3)
    longest = 1 + max(part for *_, part in places_of(folder))
    shares = np.array([2.0, 1.0, 0.5]) / 3.5
    deviations = []
    for index in range(len(folder)):
        sequence = folder[index]
        np.add.at(taken, sequence.sources, np.diff(sequence.cu_seqlens))
        deviations.append(np.abs(taken - shares * taken.sum()).max() / 512)
    assert deviations[-1] < longest, "in total within a document, which is finished where it was begun"
    assert np.quantile(deviations[10:], 0.9) < 4, "along the way within a few rows"


class TestDeterminism:
    """Chunks, buckets, workers and interruptions leave no trace in the packed shards."""

    def test_processes(self, built: tuple[Mixture, Path, dict[str, Any]], tmp_path: Path) -> None:
        mixture, output, _ = built
        Build(mixture, tmp_path / "out", Executor(num_workers=2)).run()
        assert packed_bytes(tmp_path / "out") == packed_bytes(output)

    def test_chunks_and_buckets(self, corpus: Path, built: tuple[Mixture, Path, dict[str, Any]]) -> None:
        packing = "{window_documents: 300, windows_per_shard: 2, bucket_ids: 1000000, task_rows: 37}"
        mixture = write_mixture(corpus, "other-chunks", packing=packing)
        Build(mixture, corpus / "other-chunks").run()
        assert mixture.identity() == built[0].identity()
        ours, theirs = PackedFolder(corpus / "other-chunks"), PackedFolder(built[1])
        assert places_of(ours) == places_of(theirs)
        assert packed_bytes(corpus / "other-chunks") == packed_bytes(built[1])

    def test_where_the_text_tokenizer_lies(
        self, corpus: Path, built: tuple[Mixture, Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        """Its path is noted in the footers; the order of what is packed does not know it."""
        shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "text_tokenizer")
        mixture = write_mixture(
            corpus, "other-path", text_tokenizer=f"{{path: {tmp_path / 'text_tokenizer'}}}"
        )
        Build(mixture, corpus / "other-path").run()
        assert places_of(PackedFolder(corpus / "other-path")) == places_of(PackedFolder(built[1]))

    def test_seed(self, corpus: Path, built: tuple[Mixture, Path, dict[str, Any]]) -> None:
        mixture = write_mixture(corpus, "other-seed", seed="8")
        Build(mixture, corpus / "other-seed").run()
        assert places_of(PackedFolder(corpus / "other-seed")) != places_of(PackedFolder(built[1]))

    def test_killed_at_any_moment(
        self, corpus: Path, built: tuple[Mixture, Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        """kill -9, again and again, each time a little later; then to the end."""
        output = tmp_path / "out"
        command = [sys.executable, "-m", "pipeline.packing.cli", "build", str(corpus / "weights.yaml")]
        command += ["--output", str(output)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        kills = 0
        for attempt in range(3):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            seen = len(list(output.rglob("*")))
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if len(list(output.rglob("*"))) >= seen + 2 + attempt:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
            process.wait()
        assert kills >= 1
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert packed_bytes(output) == packed_bytes(built[1])
        assert not list(output.rglob(".tmp-*"))

    def test_a_finished_build_is_left_alone(self, built: tuple[Mixture, Path, dict[str, Any]]) -> None:
        mixture, output, report = built
        before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
        assert Build(mixture, output).run() == json.loads(json.dumps(report))
        assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


class TestEpochs:
    @pytest.mark.parametrize(
        ("epochs", "low", "high"), [("1", 600, 600), ("2.5", 1400, 1600), ("0.25", 110, 190)]
    )
    def test_epochs(self, epochs: str, low: int, high: int, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=600, num_pages=4)
        mixture = write_mixture(tmp_path, "epochs", output="", sources=PAIRS_ONCE % epochs)
        report = Build(mixture, tmp_path / "out").run()
        (source,) = report["sources"]
        assert low <= source["documents_packed"] <= high
        assert source["documents_left_over"] == 0
        times = Counter(place[1:3] for place in places_of(PackedFolder(tmp_path / "out")))
        whole = int(float(epochs))
        assert set(times.values()) <= {whole, whole + 1}
        if whole:
            assert len(times) == 600, "every document in every whole epoch"

    def test_a_weighted_source_repeats_as_needed(self, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=100, num_pages=4)
        source = "\n  - {name: pairs, paths: [pairs], weight: 1, template: pair}"
        mixture = write_mixture(tmp_path, "again", output="{ids: 20000}", sources=source)
        Build(mixture, tmp_path / "out").run()
        places = places_of(PackedFolder(tmp_path / "out"))
        times = Counter(place[1:3] for place in places)
        assert max(times.values()) - min(times.values()) <= 1
        assert len({place[3] for place in places}) >= 3

    def test_epochs_draw_anew(self, tmp_path: Path) -> None:
        """The direction of a pair is drawn in every epoch."""
        write_corpus(tmp_path, num_pairs=300, num_pages=4)
        mixture = write_mixture(tmp_path, "anew", output="", sources=PAIRS_ONCE % "2")
        Build(mixture, tmp_path / "out").run()
        folder = PackedFolder(tmp_path / "out")
        directions: dict[Any, set[bool]] = {}
        for index in range(len(folder)):
            sequence = folder.with_origins(index)
            where = sequence.origins
            for document, start in enumerate(sequence.cu_seqlens[:-1].tolist()):
                is_image_first = bool(sequence.ids[start + 1] == folder.vocabulary.img_start_id)
                place = (where.shards[document], int(where.rows[document]))
                directions.setdefault(place, set()).add(is_image_first)
        both = sum(len(seen) == 2 for seen in directions.values())
        assert 100 < both < 200


class TestChoices:
    def test_filters_are_counted_by_reason(self, corpus: Path) -> None:
        source = """
  - name: pairs
    paths: [pairs]
    epochs: 1
    template: pair
    filters: {max_text_characters: 60, where: "similarity >= 0.5 and language == 'en'"}"""
        mixture = write_mixture(corpus, "filtered", output="", sources=source)
        (report,) = Build(mixture, corpus / "filtered").run()["sources"]
        documents = [document for name in mixture.files[0] for document in read_documents(mixture.path(name))]
        expected: Counter[str] = Counter()
        for document in documents:
            fields = json.loads(document.metadata)
            if len(document.texts[0]) > 60:
                expected["filter_text_too_long"] += 1
            elif not (fields["similarity"] >= 0.5 and fields["language"] == "en"):
                expected["filter_where"] += 1
        assert report["documents_refused"] == dict(expected)
        assert report["documents_packed"] == len(documents) - sum(expected.values())

    def test_template_refusals_are_counted(self, corpus: Path) -> None:
        sources = """
  - {name: pages, paths: [pages], epochs: 1, template: pair}
  - {name: pairs, paths: [pairs], epochs: 1, template: pair}"""
        mixture = write_mixture(corpus, "refused", output="", sources=sources)
        pages, pairs = Build(mixture, corpus / "refused").run()["sources"]
        assert sum(pages["documents_refused"].values()) + pages["documents_packed"] == 120
        assert set(pages["documents_refused"]) <= {"template_not_a_pair", "template_no_image"}
        assert pairs["documents_packed"] == 1500

    def test_a_source_that_gives_nothing_is_an_error(self, corpus: Path) -> None:
        source = "\n  - {name: pairs, paths: [pairs], epochs: 1, template: chat}"
        mixture = write_mixture(corpus, "nothing", output="", sources=source)
        with pytest.raises(MixtureError, match=r"pairs: no document is left of 1500 .*template_no_roles"):
            Build(mixture, corpus / "nothing").run()

    def test_weights_of_documents(self, corpus: Path) -> None:
        sources = """
  - {name: pairs, paths: [pairs], weight: 3, template: pair}
  - {name: pages, paths: [pages], weight: 1, template: {name: interleaved, max_images: 2}}"""
        mixture = write_mixture(
            corpus, "counted", output="{ids: 60000}", weight_unit="documents", sources=sources
        )
        pairs, pages = Build(mixture, corpus / "counted").run()["sources"]
        assert abs(pairs["documents_packed"] - 3 * pages["documents_packed"]) <= 3
        assert pages["ids"] > pairs["ids"] / 3

    def test_duplicates_over_sources(self, tmp_path: Path) -> None:
        documents = make_pairs(90)
        write_token_shard(tmp_path / "a" / "0.parquet", documents[:50])
        write_token_shard(tmp_path / "b" / "0.parquet", documents[30:] + documents[60:70])
        sources = """
  - {name: a, paths: [a], epochs: 1, template: pair}
  - {name: b, paths: [b], epochs: 1, template: pair, filters: {min_text_characters: 1}}"""
        mixture = write_mixture(tmp_path, "twice", output="", deduplicate="true", sources=sources)
        first, second = Build(mixture, tmp_path / "out").run()["sources"]
        assert (first["documents_packed"], first["documents_refused"]) == (50, {})
        assert (second["documents_packed"], second["documents_refused"]) == (40, {"duplicate": 30})
        page = write_html_report(tmp_path / "out").read_text()
        assert "20 documents of b equal an earlier one of a" in page
        assert "10 documents of b equal an earlier one of b" in page
        assert "0 documents of a equal an earlier one of a" in page

    def test_a_refused_copy_does_not_take_the_kept_one_along(self, tmp_path: Path) -> None:
        documents = make_pairs(20)
        write_token_shard(tmp_path / "a" / "0.parquet", documents)
        write_token_shard(tmp_path / "b" / "0.parquet", documents)
        sources = """
  - {name: a, paths: [a], epochs: 1, template: pair, filters: {where: "language == 'de'"}}
  - {name: b, paths: [b], epochs: 1, template: pair}"""
        mixture = write_mixture(tmp_path, "copy", output="", deduplicate="true", sources=sources)
        first, second = Build(mixture, tmp_path / "out").run()["sources"]
        assert first["documents_packed"] + second["documents_packed"] == 20


class TestErrors:
    def test_another_codebook(self, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=6, num_pages=2)
        other = Fingerprint({"weights": "other", "architecture": "tiny", "precision": "fp32"})
        write_token_shard(tmp_path / "pages" / "00001.parquet", make_pairs(2), other)
        with pytest.raises(
            MixtureError, match=r"pages/00001\.parquet was made with another codebook.*weights"
        ):
            Build(write_mixture(tmp_path, "m"), tmp_path / "out").run()

    def test_another_precision_shares_the_codebook(self, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=60, num_pages=2)
        other = Fingerprint({"weights": "abc", "architecture": "tiny", "precision": "bf16"})
        write_token_shard(tmp_path / "pairs" / "00001.parquet", make_pairs(20), other)
        mixture = write_mixture(tmp_path, "m", output="", sources=PAIRS_ONCE % "1")
        assert Build(mixture, tmp_path / "out").run()["sources"][0]["documents_packed"] == 60

    def test_another_build_in_the_folder(
        self, corpus: Path, built: tuple[Mixture, Path, dict[str, Any]]
    ) -> None:
        mixture = write_mixture(corpus, "changed", seed="9")
        with pytest.raises(BuildError, match=r"another build \(config\.seed: 7 there, 9 now\)"):
            Build(mixture, built[1]).run()

    @pytest.mark.parametrize("name", ["00000.parquet", "report.json"])
    def test_a_folder_of_something_else(self, name: str, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / name).write_text("{}")
        with pytest.raises(BuildError, match=f"{name}.* folder"):
            Build(write_mixture(corpus, "one"), tmp_path).run()
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_an_interrupted_build_of_another_mixture(self, corpus: Path, tmp_path: Path) -> None:
        claim_folder(tmp_path, write_mixture(corpus, "one"))
        with pytest.raises(BuildError, match=r"config\.seq_length: 512 there, 1024 now"):
            Build(write_mixture(corpus, "two", seq_length="1024"), tmp_path).run()

    def test_packed_shards_of_an_unknown_build(self, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "packed-00000.parquet").write_bytes(b"x")
        with pytest.raises(BuildError, match="unknown build"):
            Build(write_mixture(corpus, "one"), tmp_path).run()

    def test_a_bad_line_names_itself(self, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=6, num_pages=2)
        lines = ['{"text": "fine"}'] * 300 + ["{broken"]
        (tmp_path / "prose.jsonl").write_text("\n".join(lines))
        with pytest.raises(TaskFailedError, match=r"prose\.jsonl: line 301 is no JSON object"):
            Build(write_mixture(tmp_path, "m"), tmp_path / "out").run()


def test_what_a_killed_cleanup_left_is_removed(built: tuple[Mixture, Path, dict[str, Any]]) -> None:
    mixture, output, report = built
    (output / ".build").mkdir()
    (output / ".build" / "counts.json").write_text("{}")
    assert Build(mixture, output).run() == report
    assert not (output / ".build").exists()


def test_what_killed_workers_left_is_removed(tmp_path: Path) -> None:
    write_corpus(tmp_path, num_pairs=30, num_pages=2)
    mixture = write_mixture(tmp_path, "m", output="", sources=PAIRS_ONCE % "1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-packed-00000.parquet-0123abcd").write_bytes(b"half")
    Build(mixture, tmp_path / "out").run()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"packed-00000.parquet", "report.json"}


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    """The same names and sizes, another content: a build that was begun, or finished, says which file."""
    write_corpus(tmp_path, num_pairs=30, num_pages=2)
    Build(write_mixture(tmp_path, "m", output="{ids: 2000}"), tmp_path / "out").run()
    claim_folder(tmp_path / "begun", write_mixture(tmp_path, "m", output="{ids: 2000}"))
    prose = (tmp_path / "prose.jsonl").read_text()
    (tmp_path / "prose.jsonl").write_text(prose.replace("the", "thy", 1))
    message = r"inputs\.prose\.prose\.jsonl: [\d,]+ bytes, \w+ there, [\d,]+ bytes, \w+ now"
    for folder in ("out", "begun"):
        with pytest.raises(BuildError, match=message):
            Build(write_mixture(tmp_path, "m", output="{ids: 2000}"), tmp_path / folder).run()
    (tmp_path / "prose.jsonl").write_text(prose)
    os.utime(tmp_path / "prose.jsonl", (0, 0))
    Build(write_mixture(tmp_path, "m", output="{ids: 2000}"), tmp_path / "out").run()


def test_a_large_shard_of_equal_size_with_other_codes_is_another_input(tmp_path: Path) -> None:
    """One code of one image differs: compressed to the same size, but the page's checksum tells."""
    documents = make_pairs(40_000)
    path = write_token_shard(tmp_path / "0.parquet", documents)
    before, size = content_identity(path), path.stat().st_size
    assert size > HASHED_WHOLE_BYTES
    picture, text = documents[20_000].segments
    codes = picture.codes.copy()
    codes[0] ^= 1
    documents[20_000] = Document("pair-020000", (ImageSegment(codes), text), documents[20_000].metadata)
    write_token_shard(path, documents)
    assert content_identity(path) != before


def test_buckets_keep_their_size_when_the_first_documents_mislead(tmp_path: Path) -> None:
    """Sampled documents are a word each, others hundreds of ids: buckets keep to the size asked for."""

    class Recording(Executor):
        sizes: list[int]

        def run(self, name: str, make_worker: Any, tasks: Any) -> None:
            super().run(name, make_worker, tasks)
            if name == "shuffle":
                self.sizes = [ItemsFile(task.output).counts["ids"] for task in tasks]

    texts = [f"word {index}" for index in range(64)] + [f"{index} " * 200 for index in range(336)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = "\n  - {name: prose, paths: [prose.jsonl], format: jsonl, epochs: 1, template: text}"
    outputs = []
    for bucket_ids in (20_000, 10_000_000):
        packing = f"{{window_documents: 300, windows_per_shard: 2, bucket_ids: {bucket_ids}, task_rows: 400}}"
        mixture = write_mixture(tmp_path, "m", sources=sources, output="", packing=packing)
        executor = Recording()
        Build(mixture, tmp_path / str(bucket_ids), executor).run()
        assert max(executor.sizes) < 2 * bucket_ids
        outputs.append([places[1:] for places in places_of(PackedFolder(tmp_path / str(bucket_ids)))])
    assert outputs[0] == outputs[1], "the order is that of the keys"


def test_text_in_parquet_is_filtered_as_in_json_lines(tmp_path: Path) -> None:
    write_corpus(tmp_path, num_pairs=3, num_pages=2)
    rows = [json.loads(line) for line in (tmp_path / "prose.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prose.parquet")
    outcomes = []
    for kind in ("jsonl", "parquet"):
        sources = (
            f"\n  - {{name: prose, paths: [prose.{kind}], format: {kind}, epochs: 1, template: text,"
            " filters: {where: length > 300}}"
        )
        mixture = write_mixture(tmp_path, kind, sources=sources, output="")
        (source,) = Build(mixture, tmp_path / kind).run()["sources"]
        outcomes.append((source["documents_packed"], source["documents_refused"], source["ids"]))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == sum(row["length"] > 300 for row in rows) > 0


def test_a_filter_on_an_absent_parquet_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a text"], "score": [1.0]}), tmp_path / "prose.parquet")
    sources = (
        "\n  - {name: prose, paths: [prose.parquet], format: parquet, epochs: 1, template: text,"
        " filters: {where: scor > 0.5}}"
    )
    mixture = write_mixture(tmp_path, "m", sources=sources, output="")
    with pytest.raises(MixtureError, match=r"no column 'scor' \(filters.where\), it has text, score"):
        Build(mixture, tmp_path / "out").run()


@pytest.mark.ray
class TestRay:
    """The same build on a local Ray cluster, one for both tests."""

    @pytest.fixture(scope="class")
    def executor(self) -> Iterator[Executor]:
        executor = Executor(num_workers=2, use_ray=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RAY_ADDRESS", raising=False)
            with executor.session():
                yield executor

    def test_the_same_bytes(
        self, executor: Executor, built: tuple[Mixture, Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        mixture, output, _ = built
        Build(mixture, tmp_path / "out", executor).run()
        assert packed_bytes(tmp_path / "out") == packed_bytes(output)

    def test_a_failing_task_names_itself(self, executor: Executor, tmp_path: Path) -> None:
        write_corpus(tmp_path, num_pairs=6, num_pages=2)
        (tmp_path / "prose.jsonl").write_text('{"text": "fine"}\n' * 300 + "{broken")
        with pytest.raises(TaskFailedError, match=r"prose\.jsonl: line 301 is no JSON object"):
            Build(write_mixture(tmp_path, "m"), tmp_path / "out", executor).run()
