"""Captions and codes that are at hand in memory as packed rows, by the same formats and templates as ever."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.build import Build
from pipeline.packing.mixture_file import resolve_mixture
from schemas.document import Document, ImageSegment, TextSegment
from schemas.fingerprint import Fingerprint
from schemas.mixture import MixtureConfig, SourceConfig, TextTokenizerConfig
from schemas.token_shard import ShardCounts, TokenShardFooter, TokenShardWriter

SHARD_NAME = "pairs.parquet"


def write_coded_pairs(
    folder: Path, captions: Sequence[str], codes_IN: NDArray[np.uint16], fingerprint: Fingerprint
) -> Path:
    """One token shard in ``folder`` of captions and their pictures' (I, 32) codes; ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    num = len(captions)
    counts = ShardCounts(samples_read=num, documents_written=num, images_read=num, images_written=num)
    unfinished = folder / f".{SHARD_NAME}"
    with TokenShardWriter(unfinished) as writer:
        for index, (caption, codes_N) in enumerate(zip(captions, codes_IN, strict=True)):
            writer.write(Document(f"{index:07d}", (ImageSegment(codes_N), TextSegment(caption))))
        writer.close(TokenShardFooter("pairs", "in memory", None, True, fingerprint, counts))
    unfinished.rename(folder / SHARD_NAME)
    return folder


def pack_coded_pairs(
    tokens: Path,
    output: Path,
    text_tokenizer: Path,
    *,
    seq_length: int,
    template: Mapping[str, Any],
    epochs: float = 1,
) -> Path:
    """Pack what ``write_coded_pairs`` wrote, by the template ``pair`` with these settings; ``output``."""
    source = SourceConfig(
        name="pairs", paths=(str(tokens.resolve()),), epochs=epochs, template="pair", settings=template
    )
    mixture = MixtureConfig(
        text_tokenizer=TextTokenizerConfig(path=str(text_tokenizer.resolve())),
        sources=(source,),
        seq_length=seq_length,
    )
    Build(resolve_mixture(mixture, tokens), output).run()
    return output
