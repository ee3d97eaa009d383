"""One shard from reading to commit: order, conservation, the ledger, and nothing visible when it fails."""

import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import encode_shard
from pipeline.batching_encoder import BatchingEncoder, FinishBatch
from pipeline.encode_shard import ShardCancelledError, ShardSettings
from pipeline.null_encoder import NullEncoder, _hash_codes
from pipeline.shard_task import ShardTask
from pipeline.sources.records import RawDocument, RawImage
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, Unit, parse_records
from schemas.token_shard import TokenShardError, check_token_shard, read_documents, read_footer
from tests.pipeline.tiny_shards import (
    ledger_of,
    leftovers,
    open_encoder,
    pair_members,
    png,
    task_for,
    token_files,
    write_shards,
    write_tar,
)
from tokenizer.preprocess import PreprocessConfig, load_image


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("in"), 1, 40) / "00000.tar"


def test_documents_come_in_source_order_with_the_codes_of_their_picture(shard: Path, tmp_path: Path) -> None:
    with open_encoder(tmp_path) as encoder:
        report = encoder.encode(task_for(shard))
    documents = list(read_documents(tmp_path / "00000.parquet"))
    sound = [seed for seed in range(40) if seed % 7 != 6]
    assert [document.key for document in documents] == [f"{seed:06}" for seed in sound]
    for seed, document in zip(sound, documents, strict=True):
        pixels = load_image(png(seed), PreprocessConfig())
        assert np.array_equal(document.images[0].codes, _hash_codes(pixels))
        assert document.texts == [f"caption {seed}"]
    assert report.counts.samples_read == 40
    assert report.counts.samples_quarantined == {"image_not_an_image": 5}


def test_the_ledger_is_the_one_that_the_footer_names(shard: Path, tmp_path: Path) -> None:
    with open_encoder(tmp_path) as encoder:
        encoder.encode(task_for(shard))
    footer = check_token_shard(tmp_path / "00000.parquet")
    records = list(parse_records(ledger_of(tmp_path / "00000.parquet").read_bytes()))
    assert footer.quarantine is not None
    assert footer.quarantine.num_records == len(records) == 5
    assert [record.key for record in records] == [f"{seed:06}" for seed in range(6, 40, 7)]
    assert {record.source for record in records} == {footer.source} == {str(shard)}
    assert all(record.num_bytes > 0 for record in records)


@pytest.mark.parametrize(
    ("batch_size", "decode_workers", "images_in_flight", "documents_in_flight"),
    [(1, 0, 1, 1), (3, 0, 2, 4096), (64, 2, 0, 5), (8, 1, 5, 7)],
)
def test_the_same_bytes_whatever_the_batch_and_the_workers(
    shard: Path,
    tmp_path: Path,
    batch_size: int,
    decode_workers: int,
    images_in_flight: int,
    documents_in_flight: int,
) -> None:
    with open_encoder(tmp_path / "plain") as encoder:
        encoder.encode(task_for(shard))
    with open_encoder(
        tmp_path / "other",
        batch_size=batch_size,
        decode_workers=decode_workers,
        images_in_flight=images_in_flight,
        documents_in_flight=documents_in_flight,
    ) as encoder:
        encoder.encode(task_for(shard))
    assert token_files(tmp_path / "other") == token_files(tmp_path / "plain")


GOOD, BAD = png(1), b"no picture"


def read_made_up(items: list[RawDocument | QuarantineRecord]):
    def read(task: ShardTask) -> Iterator[RawDocument | QuarantineRecord]:
        yield from items

    return read


any_segment = st.sampled_from([TextSegment("text"), RawImage(GOOD, "png"), RawImage(BAD, "png")])
any_item = st.one_of(
    st.lists(any_segment, max_size=6).map(lambda segments: RawDocument("k", tuple(segments))),
    st.sampled_from(
        [
            QuarantineRecord("s", "k", Unit.SAMPLE, Reason.CAPTION_EMPTY),
            QuarantineRecord("s", "k", Unit.IMAGE, Reason.DOC_IMAGE_MISSING),
            QuarantineRecord("s", "k.bin", Unit.MEMBER, Reason.UNSAFE_MEMBER_NAME),
        ]
    ),
)


@given(items=st.lists(any_item, max_size=12), on_bad_image=st.sampled_from(["drop-document", "drop-image"]))
@settings(deadline=None, max_examples=60)
def test_everything_that_comes_in_is_written_or_in_the_ledger(
    items: list[RawDocument | QuarantineRecord], on_bad_image: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("out")
    shard_settings = ShardSettings(
        kind="interleaved", fingerprint=NullEncoder().fingerprint, on_bad_image=on_bad_image
    )
    with open_encoder(
        folder, read=read_made_up(items), settings=shard_settings, images_in_flight=3
    ) as encoder:
        counts = encoder.encode(ShardTask("a", "a.tar")).counts
    check_token_shard(folder / "a.parquet")
    has_ledger = read_footer(folder / "a.parquet").quarantine is not None
    records = list(parse_records(ledger_of(folder / "a.parquet").read_bytes())) if has_ledger else []
    samples = [item for item in items if isinstance(item, RawDocument) or item.unit is Unit.SAMPLE]
    assert counts.samples_read == len(samples)
    assert counts.num_quarantined == sum(record.unit is Unit.SAMPLE for record in records)
    assert counts.documents_written == len(samples) - counts.num_quarantined
    images = [
        segment
        for item in items
        if isinstance(item, RawDocument)
        for segment in item.segments
        if isinstance(segment, RawImage)
    ]
    from_source = sum(isinstance(item, QuarantineRecord) and item.unit is Unit.IMAGE for item in items)
    assert counts.images_read == len(images) + from_source
    written = [image for document in read_documents(folder / "a.parquet") for image in document.images]
    assert counts.images_written == len(written)
    if on_bad_image == "drop-image":
        assert len(written) == sum(image.data == GOOD for image in images)


@pytest.mark.parametrize("lost", [RawDocument, QuarantineRecord])
def test_what_is_lost_on_the_way_is_missed_at_commit(
    lost: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check means something only if what comes in is counted before anything can lose it."""
    write = encode_shard._ShardRun._write

    def write_but_one(run: encode_shard._ShardRun, item, writer) -> None:
        if not isinstance(getattr(item, "raw", item), lost):
            write(run, item, writer)

    monkeypatch.setattr(encode_shard._ShardRun, "_write", write_but_one)
    refused = QuarantineRecord("a.tar", "b", Unit.SAMPLE, Reason.CAPTION_MISSING)
    items = [RawDocument("a", (RawImage(GOOD, "png"), TextSegment("a"))), refused]
    with (
        open_encoder(tmp_path, read=read_made_up(items)) as encoder,
        pytest.raises(TokenShardError, match="2 samples read, but"),
    ):
        encoder.encode(ShardTask("a", "a.tar"))
    assert token_files(tmp_path) == {}


def test_drop_image_keeps_the_rest_of_the_document(tmp_path: Path) -> None:
    segments = (TextSegment("one"), RawImage(BAD, "png"), TextSegment("two"), RawImage(GOOD, "png"))
    shard_settings = ShardSettings(
        kind="interleaved", fingerprint=NullEncoder().fingerprint, on_bad_image="drop-image"
    )
    read = read_made_up([RawDocument("page", segments)])
    with open_encoder(tmp_path, read=read, settings=shard_settings) as encoder:
        encoder.encode(ShardTask("a", "a.tar"))
    (document,) = read_documents(tmp_path / "a.parquet")
    assert document.texts == ["one", "two"]
    assert len(document.images) == 1
    (record,) = parse_records(ledger_of(tmp_path / "a.parquet").read_bytes())
    assert (record.unit, record.key) == (Unit.IMAGE, "page")
    assert record.detail.startswith("segment 1: ")


def test_one_document_with_more_images_than_may_be_under_way(tmp_path: Path) -> None:
    document = RawDocument("k", tuple(RawImage(GOOD, "png") for _ in range(50)))
    with open_encoder(tmp_path, read=read_made_up([document]), images_in_flight=3, batch_size=8) as encoder:
        assert encoder.encode(ShardTask("a", "a.tar")).counts.images_written == 50


def test_each_image_that_is_done_is_a_sign_of_life(tmp_path: Path) -> None:
    """One document of hundreds of images may keep a slow model busy for longer than --stall-timeout."""
    document = RawDocument("k", tuple(RawImage(GOOD, "png") for _ in range(50)))
    for images_in_flight in (3, 100):
        moves: list[None] = []
        with open_encoder(
            tmp_path, read=read_made_up([document]), images_in_flight=images_in_flight
        ) as encoder:
            encoder.encode(ShardTask("a", "a.tar"), lambda: moves.append(None))  # noqa: B023
        assert len(moves) >= 50


def test_memory_stays_bounded_while_a_shard_streams(tmp_path: Path) -> None:
    alive = most = 0

    class Counted(RawDocument):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def read(task: ShardTask) -> Iterator[RawDocument]:
        nonlocal alive, most
        for index in range(400):
            alive += 1
            most = max(most, alive)
            yield Counted(str(index), (RawImage(GOOD, "png"), TextSegment("t")))

    with open_encoder(tmp_path, read=read, batch_size=4) as encoder:
        assert encoder.encode(ShardTask("a", "a.tar")).counts.documents_written == 400
    assert most <= 3 * 4 + 4


def test_decoding_goes_on_while_the_model_is_full(tmp_path: Path) -> None:
    """Two batches are in the model, which takes its time; one more waits, and the next is being decoded."""
    has_read_on = threading.Event()

    class SlowModel(NullEncoder):
        def start(self, images: list[np.ndarray], batch_size: int) -> FinishBatch:
            read_codes = super().start(images, batch_size)

            def finish() -> np.ndarray:
                assert has_read_on.wait(20.0)
                return read_codes()

            return finish

    def read(task: ShardTask) -> Iterator[RawDocument]:
        for index in range(40):
            if index == 4 * 4:
                has_read_on.set()
            yield RawDocument(str(index), (RawImage(GOOD, "png"), TextSegment("t")))

    with (
        BatchingEncoder(SlowModel(), 4, batches_in_flight=2) as batching,
        open_encoder(tmp_path, read=read, batching=batching) as encoder,
    ):
        assert encoder.encode(ShardTask("a", "a.tar")).counts.images_written == 40


class TestFailures:
    """An attempt that fails leaves nothing behind."""

    def test_a_source_that_breaks_off(self, tmp_path: Path) -> None:
        def read(task: ShardTask) -> Iterator[RawDocument]:
            yield RawDocument("k", (RawImage(GOOD, "png"),))
            raise ConnectionResetError("peer went away")

        with open_encoder(tmp_path, read=read) as encoder, pytest.raises(ConnectionResetError):
            encoder.encode(ShardTask("a", "a.tar"))
        assert list(tmp_path.iterdir()) == []

    def test_cancelling_stops_at_the_next_sample(self, tmp_path: Path) -> None:
        def read(task: ShardTask) -> Iterator[RawDocument]:
            for index in itertools.count():
                if index == 10:
                    encoder.is_cancelled.set()
                assert index <= 10
                yield RawDocument(str(index), (RawImage(GOOD, "png"),))

        with open_encoder(tmp_path, read=read) as encoder, pytest.raises(ShardCancelledError):
            encoder.encode(ShardTask("a", "a.tar"))
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_source_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with open_encoder(tmp_path / "out") as encoder, pytest.raises(FileNotFoundError, match=r"gone\.tar"):
            encoder.encode(ShardTask("gone", str(tmp_path / "gone.tar")))
        assert token_files(tmp_path / "out") == {}

    def test_what_is_read_back_before_commit_must_be_what_was_written(
        self, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipeline import encode_shard

        def corrupt(point: str, name: str) -> None:
            if point == "after_write":
                (staged,) = tmp_path.glob(".tmp-*.parquet-*")
                staged.write_bytes(staged.read_bytes()[:-20])

        monkeypatch.setattr(encode_shard.fault_points, "reach", corrupt)
        with open_encoder(tmp_path) as encoder, pytest.raises(TokenShardError):
            encoder.encode(task_for(shard))
        assert token_files(tmp_path) == {}
        assert leftovers(tmp_path) == []


def test_a_damaged_tar_gives_what_is_sound_and_says_so(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "cut.tar", [member for seed in range(5) for member in pair_members(str(seed), seed)]
    )
    path.write_bytes(path.read_bytes()[:4000])
    with open_encoder(tmp_path / "out") as encoder:
        report = encoder.encode(task_for(path))
    footer = read_footer(tmp_path / "out" / "cut.parquet")
    assert not footer.source_complete
    assert not report.source_complete
    assert 0 < footer.counts.documents_written < 5
    assert footer.counts.notes == {"tar_truncated": 1}


class TestOverwriting:
    """A second attempt replaces the first, and never mixes with it."""

    def test_a_ledger_survives_an_attempt_that_commits_between_it_and_its_token_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One attempt had a bad image, another none (a decoder that timed out once): any order is whole."""
        from pipeline import encode_shard

        bad, sound = (read_made_up([RawDocument("k", (RawImage(data, "png"),))]) for data in (BAD, GOOD))

        def overtake(point: str, name: str) -> None:
            if point == "after_ledger":
                monkeypatch.undo()
                with open_encoder(tmp_path, read=sound) as other:
                    other.encode(ShardTask("a", "a.tar"))

        monkeypatch.setattr(encode_shard.fault_points, "reach", overtake)
        with open_encoder(tmp_path, read=bad) as encoder:
            encoder.encode(ShardTask("a", "a.tar"))
        assert len(list(parse_records(ledger_of(tmp_path / "a.parquet").read_bytes()))) == 1

    def test_an_old_ledger_is_named_by_nobody(self, tmp_path: Path) -> None:
        source = write_shards(tmp_path / "in", 1, 10) / "00000.tar"
        with open_encoder(tmp_path / "out") as encoder:
            encoder.encode(task_for(source))
            old = ledger_of(tmp_path / "out" / "00000.parquet").name
            shutil.rmtree(tmp_path / "in")
            encoder.encode(task_for(write_shards(tmp_path / "in", 1, 10, bad_every=0) / "00000.tar"))
        assert list(token_files(tmp_path / "out")) == ["00000.parquet", old]
        assert read_footer(tmp_path / "out" / "00000.parquet").quarantine is None

    def test_two_writers_at_once_end_with_one_whole_shard(self, shard: Path, tmp_path: Path) -> None:
        import threading

        with open_encoder(tmp_path) as first, open_encoder(tmp_path) as second:
            threads = [
                threading.Thread(target=encoder.encode, args=(task_for(shard),))
                for encoder in (first, second)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=60)
        check_token_shard(tmp_path / "00000.parquet")
        assert leftovers(tmp_path) == []


def test_the_report_is_one_json_line(shard: Path, tmp_path: Path) -> None:
    with open_encoder(tmp_path) as encoder:
        report = encoder.encode(task_for(shard))
    fields = json.loads(json.dumps(report.to_fields()))
    assert fields["name"] == "00000"
    assert fields["counts"]["documents_written"] == 35
    assert fields["output_bytes"] == sum(map(len, token_files(tmp_path).values()))
