"""Packed rows made readable: text as text, images by the key of their document, what is learned in bold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from schemas.packed_folder import PackedFolder
from schemas.packed_shard import Origins, PackedSequence
from schemas.vocabulary import IMAGE_SPAN_LENGTH
from tokenizer.text_tokenizer import TextTokenizer

UNTRACED = "image"


@dataclass(frozen=True)
class DocumentTrace:
    """Where one document of a packed row came from."""

    source: str
    shard: str
    row: int
    epoch: int
    part: int
    key: str | None
    """Key of the sample, where the token shard is at hand."""
    num_ids: int
    num_learned: int


def trace_row(folder: PackedFolder, index: int, root: Path | None = None) -> list[DocumentTrace]:
    """The documents of a row, back to shard, row and key.

    Args:
        root: folder that the names of input files are relative to (that of the mixture file); without it,
            or where a file is gone, keys stay unknown.
    """
    sequence = folder.with_origins(index)
    assert sequence.origins is not None
    origins, mask, names = sequence.origins, sequence.loss_mask, folder.source_names
    traces = []
    for document, source in enumerate(sequence.sources.tolist()):
        start, stop = sequence.cu_seqlens[document : document + 2]
        traces.append(
            DocumentTrace(
                names[source],
                origins.shards[document],
                int(origins.rows[document]),
                int(origins.epochs[document]),
                int(origins.parts[document]),
                _read_key(root, origins, document),
                int(stop - start),
                int(np.count_nonzero(mask[start:stop])),
            )
        )
    return traces


def _read_key(root: Path | None, origins: Origins, document: int) -> str | None:
    """``key`` of a token shard's row, reading its row group's keys alone."""
    path = Path(root or ".") / origins.shards[document]
    if path.suffix != ".parquet" or not path.exists():
        return None
    row = int(origins.rows[document])
    with pq.ParquetFile(path) as file:
        if "key" not in file.schema_arrow.names:
            return None
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if row < num_rows:
                return str(file.read_row_group(group, columns=["key"]).column(0)[row].as_py())
            row -= num_rows
    return None


def in_bold(text: str) -> str:
    """For terminals."""
    return f"\x1b[1m{text}\x1b[0m"


def in_stars(text: str) -> str:
    """For files and pipes."""
    return f"**{text}**"


def spell_row(
    sequence: PackedSequence,
    folder: PackedFolder,
    tokenizer: TextTokenizer,
    traces: list[DocumentTrace],
    *,
    emphasise: Callable[[str], str],
) -> Iterator[str]:
    """One text per document, learned runs emphasised."""
    mask = sequence.loss_mask
    for document, trace in enumerate(traces):
        start, stop = (int(bound) for bound in sequence.cu_seqlens[document : document + 2])
        changes = np.flatnonzero(np.diff(mask[start:stop])) + start + 1
        bounds = [start, *changes.tolist(), stop]
        text = ""
        for run_start, run_stop in pairwise(bounds):
            run = spell_ids(sequence.ids[run_start:run_stop], folder, tokenizer, trace.key or UNTRACED)
            text += emphasise(run) if mask[run_start] else run
        yield text


def spell_ids(ids: np.ndarray, folder: PackedFolder, tokenizer: TextTokenizer, image_name: str) -> str:
    """Ids as text; an image span is ``[image: name]``, a part of one (masks may split it) ``[codes]``."""
    layout, result, position = folder.vocabulary, "", 0
    names = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    is_image = layout.is_image_id(ids)
    while position < len(ids):
        value = int(ids[position])
        if value == layout.img_start_id and position + IMAGE_SPAN_LENGTH <= len(ids):
            result += f"[image: {image_name}]"
            position += IMAGE_SPAN_LENGTH
        elif is_image[position]:
            end = position + 1
            while end < len(ids) and is_image[end] and ids[end] != layout.img_start_id:
                end += 1
            result += "<img>" if value == layout.img_start_id and end == position + 1 else "[codes]"
            position = end
        elif value in names:
            result += names[value]
            position += 1
        else:
            end = position
            while end < len(ids) and not is_image[end] and int(ids[end]) not in names:
                end += 1
            result += tokenizer.decode(ids[position:end])
            position = end
    return result
