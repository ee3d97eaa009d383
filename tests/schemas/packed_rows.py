"""Packed sequences for tests: random documents of text and image spans, with padding behind."""

from pathlib import Path
from typing import Any

import numpy as np

from schemas.packed_shard import (
    Origins,
    PackedSequence,
    PackedShardFooter,
    SourceCounts,
    TextTokenizerIdentity,
    encode_runs,
)
from schemas.packed_writer import PackedShardWriter
from schemas.vocabulary import VocabularyLayout

SEQ_LENGTH = 96
LAYOUT = VocabularyLayout(1000)


def make_sequence(rng: np.random.Generator, layout: VocabularyLayout = LAYOUT) -> PackedSequence:
    """Random documents of text and images, some padding behind."""
    ids, lengths, mask = [], [], []
    while sum(lengths) < SEQ_LENGTH - 40:
        text = rng.integers(3, layout.base_size, int(rng.integers(1, 6)))
        span = layout.image_span(rng.integers(0, 8192, 32, dtype=np.uint16))
        document = np.concatenate([text, span]) if rng.random() < 0.5 else text
        learned = rng.random(len(document)) < 0.7
        learned[0] = False
        ids.append(document)
        mask.append(learned)
        lengths.append(len(document))
    padded = np.zeros(SEQ_LENGTH, layout.id_dtype)
    padded[: sum(lengths)] = np.concatenate(ids)
    num_documents = len(lengths)
    origins = Origins(
        [f"tokens/{index % 3}.parquet" for index in range(num_documents)],
        rng.integers(0, 2**32, num_documents, dtype=np.uint32),
        rng.integers(0, 3, num_documents, dtype=np.uint16),
        np.zeros(num_documents, np.uint16),
    )
    return PackedSequence(
        padded,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        encode_runs(np.concatenate(mask)),
        rng.integers(0, 2, num_documents, dtype=np.uint16),
        origins,
    )


def count_sources(sequences: list[PackedSequence], layout: VocabularyLayout) -> tuple[SourceCounts, ...]:
    counts = np.zeros((2, 4), int)
    for sequence in sequences:
        for document, source in enumerate(sequence.sources):
            span = slice(*sequence.cu_seqlens[document : document + 2])
            images = int(np.sum(sequence.ids[span] == layout.img_start_id))
            counts[source] += (1, span.stop - span.start, sequence.loss_mask[span].sum(), images)
    return tuple(
        SourceCounts(name, *map(int, row)) for name, row in zip(("coyo", "obelics"), counts, strict=True)
    )


def make_footer(sequences: list[PackedSequence], **changes: Any) -> PackedShardFooter:
    layout = changes.get("vocabulary", LAYOUT)
    fields = {
        "seq_length": SEQ_LENGTH,
        "vocabulary": layout,
        "tokenizer": TextTokenizerIdentity("samples/bpe", "ab" * 32, 1, 2),
        "mixture": "cd" * 16,
        "seed": 3,
        "shard_index": 0,
        "num_shards": 1,
        "num_sequences": len(sequences),
        "sources": count_sources(sequences, layout),
        "codebooks": {"coyo": "ef" * 16},
    }
    return PackedShardFooter(**fields | changes)


def write_packed(path: Path, sequences: list[PackedSequence], **changes: Any) -> Path:
    footer = make_footer(sequences, **changes)
    with PackedShardWriter(path, SEQ_LENGTH, footer.vocabulary) as writer:
        for sequence in sequences:
            writer.write(sequence)
        writer.close(footer)
    return path


def make_sequences(
    num_sequences: int, seed: int = 0, layout: VocabularyLayout = LAYOUT
) -> list[PackedSequence]:
    rng = np.random.default_rng(seed)
    return [make_sequence(rng, layout) for _ in range(num_sequences)]


def assert_same(ours: PackedSequence, theirs: PackedSequence) -> None:
    for name in ("ids", "cu_seqlens", "loss_runs", "sources"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype, name
