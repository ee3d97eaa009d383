"""Batches of packed rows: labels, bounds, and the same global batch on any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.packed_folder import PackedFolder
from schemas.packed_order import stored_index
from schemas.packed_shard import IGNORED_LABEL
from tests.schemas.packed_rows import SEQ_LENGTH
from tests.trainer.runs import packed_folder
from trainer.packed_data import BatchShape, PackedLoader, collate, describe_rows, read_step

CPU = torch.device("cpu")
GLOBAL_BATCH = 24  # divided by 1, 2, 3, 4 and 8 ranks; an epoch of the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PackedFolder:
    return PackedFolder(packed_folder(tmp_path_factory.mktemp("packed")))


def test_labels_are_the_next_learned_id_of_the_same_document(folder: PackedFolder) -> None:
    rows = [folder[index] for index in range(6)]
    batch = collate(rows, list(range(6)))
    for index, row in enumerate(rows):
        expected = np.full(SEQ_LENGTH, IGNORED_LABEL)
        places = np.empty(SEQ_LENGTH, int)
        sources = np.zeros(SEQ_LENGTH, int)
        for document, (start, end) in enumerate(zip(row.cu_seqlens, row.cu_seqlens[1:], strict=False)):
            for position in range(start, end):
                places[position] = position - start
                sources[position] = row.sources[document]
                if position + 1 < end and row.loss_mask[position + 1]:
                    expected[position] = row.ids[position + 1]
        places[row.num_ids :] = np.arange(SEQ_LENGTH - row.num_ids)
        assert batch.labels_BT[index].tolist() == expected.tolist()
        assert batch.positions_BT[index].tolist() == places.tolist()
        assert batch.sources_BT[index].tolist() == sources.tolist()
        assert batch.ids_BT[index].tolist() == row.ids.tolist()
        bounds = batch.cu_seqlens_BN[index]
        assert bounds[0] == 0
        assert bounds[-1] == SEQ_LENGTH
        assert set(row.cu_seqlens) <= set(bounds.tolist())
    assert batch.num_padding == sum(SEQ_LENGTH - row.num_ids for row in rows)
    lengths = np.concatenate([np.diff(row.cu_seqlens) for row in rows])
    assert batch.num_attended == sum(length * (length + 1) // 2 for length in lengths)


def global_batches(
    folder: PackedFolder, num_ranks: int, num_workers: int, micro: int, start: int, num_steps: int
) -> list[torch.Tensor]:
    """Ids of whole steps, the shares of all ranks joined, as the loaders of a run give them."""
    shapes = [BatchShape(GLOBAL_BATCH, micro, rank, num_ranks) for rank in range(num_ranks)]
    loaders = [PackedLoader(folder, 7, shape, start, CPU, num_workers) for shape in shapes]
    batches = []
    for number, steps in enumerate(zip(*loaders, strict=False), start=1):
        batches.append(torch.cat([batch.ids_BT for step in steps for batch in step.micro_batches]))
        assert {step.consumed_sequences for step in steps} == {start + number * GLOBAL_BATCH}
        if number == num_steps:
            break
    for loader in loaders:
        loader.close()
    return batches


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_global_batch_is_the_same_for_any_ranks_and_workers(
    folder: PackedFolder, data: st.DataObject
) -> None:
    """Three epochs, stopped anywhere and resumed on another number of ranks and workers."""
    expected = [
        torch.stack([torch.from_numpy(folder[index].ids.astype(np.int64)) for index in indices])
        for indices in np.reshape([stored_index(place, 24, 7) for place in range(72)], (3, 24))
    ]
    stop = data.draw(st.integers(0, 3), "steps before the stop")
    batches = []
    for start, num_steps in ((0, stop), (stop, 3 - stop)):
        num_ranks = data.draw(st.sampled_from([1, 2, 3, 4, 8]), "ranks")
        num_workers = data.draw(st.integers(1, 4), "workers")
        micro = data.draw(st.sampled_from([1, GLOBAL_BATCH // num_ranks]), "micro batch")
        if num_steps:
            first = start * GLOBAL_BATCH
            batches += global_batches(folder, num_ranks, num_workers, micro, first, num_steps)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, expected, strict=True))


def test_every_row_comes_once_an_epoch(folder: PackedFolder) -> None:
    for epoch in range(3):
        steps = [read_step(folder, 1, BatchShape(8, 8), epoch * 24 + first) for first in (0, 8, 16)]
        rows = [index for step in steps for index in step.micro_batches[0].row_indices]
        assert sorted(rows) == list(range(24))


def test_loader_gives_the_steps_of_any_start(folder: PackedFolder) -> None:
    shape = BatchShape(6, 2, rank=1, num_ranks=3)
    loader = PackedLoader(folder, 5, shape, 12, CPU)
    for step, data in zip(range(8), loader, strict=False):
        expected = read_step(folder, 5, shape, 12 + 6 * step)
        assert data.consumed_sequences == expected.consumed_sequences
        for ours, theirs in zip(data.micro_batches, expected.micro_batches, strict=True):
            assert torch.equal(ours.labels_BT, theirs.labels_BT)
    loader.close()


def test_errors_of_the_reading_thread_reach_the_loop(tmp_path: Path) -> None:
    path = packed_folder(tmp_path) / "packed-00000.parquet"
    folder = PackedFolder(tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as file:  # a disk that lost the data but not the footer
        file.seek(4)
        file.write(b"\xff" * (size // 2))
    loader = PackedLoader(folder, 0, BatchShape(8, 8), 0, CPU)
    with pytest.raises((OSError, ValueError, IndexError)):
        for _ in zip(range(4), loader, strict=False):
            pass
    loader.close()


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.global_batch \(8\) must be a multiple"):
        BatchShape(8, 3)


def test_rows_are_described_with_their_origin(folder: PackedFolder) -> None:
    text = describe_rows(folder, [3])
    assert "packed-00000.parquet row 3 (from tokens/0.parquet:" in text
