"""How full rows get, how fast packing is, and what the whole build costs over tokenizing alone.

    python -m benchmarks.packing [--documents 60000] [--json FILE]

Three parts: padding and speed of best-fit-decreasing and of exact filling on lengths with the shapes of
pairs, emoji names, text and interleaved pages; the build of token shards with real texts (this repository's
captions and prose, random codes) against the tokenizers library alone. Alone means: the same texts, as Python
strings in memory, through `encode_batch_fast` of the unchanged tokenizer in batches of 1,024, and the ids of
each read. The build reads Parquet, draws, encodes, splits, shuffles, plans, packs, writes and syncs.
Both on one thread (RAYON_NUM_THREADS=1), in CPU seconds of the process, by turns, the least of three.
Read the ratios: the machine may be shared.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # per core

import numpy as np
from tokenizers import Tokenizer

from pipeline.packing.best_fit import assign_rows, best_fit_decreasing, count_rows
from pipeline.packing.build import Build
from pipeline.packing.exact_fill import fill_rows
from pipeline.packing.mixture_file import load_mixture
from schemas.document import Document
from tests.packing.corpus import make_pages, make_pairs, mixture_text, write_token_shard
from tests.packing.golden_inputs import SAMPLE_TOKENIZER
from tests.packing.test_best_fit import draw_lengths

SEQ_LENGTH = 2048


@dataclass(frozen=True)
class PackingResult:
    lengths: str
    num_documents: int
    best_fit_padding: float
    packed_padding: float
    best_fit_documents_s: float
    exact_documents_s: float


@dataclass(frozen=True)
class BuildResult:
    kind: str
    num_documents: int
    tokenize_cpu_s: float
    build_cpu_s: float
    text_ids_s: float
    """Ids a second of the tokenizers library alone."""
    build_ids_s: float
    ids_ratio: float
    """Ids a second of the build (images included) over those of the tokenizers library alone."""
    documents_ratio: float
    """The same for documents: tokenizing's share of the build's time."""
    padding: float


def measure_packing(name: str, num_documents: int) -> PackingResult:
    lengths = draw_lengths(name, num_documents)
    best_fit_decreasing(lengths[:10], SEQ_LENGTH)  # compile
    start = time.perf_counter()
    best = best_fit_decreasing(lengths, SEQ_LENGTH)
    best_s = time.perf_counter() - start
    start = time.perf_counter()
    fill_rows(lengths, SEQ_LENGTH)
    exact_s = time.perf_counter() - start
    packed = assign_rows(lengths, SEQ_LENGTH)

    def padding(rows: np.ndarray) -> float:
        return round(1 - int(lengths.sum()) / (count_rows(rows) * SEQ_LENGTH), 5)

    return PackingResult(
        name,
        num_documents,
        padding(best),
        padding(packed),
        round(num_documents / best_s),
        round(num_documents / exact_s),
    )


def measure_build(kind: str, documents: list[Document], folder: Path) -> BuildResult:
    write_token_shard(folder / "source" / "00000.parquet", documents)
    template = "pair" if kind == "pairs" else "{name: interleaved, max_images: null}"
    source = f"\n  - {{name: source, paths: [source], epochs: 1, template: {template}}}"
    path = folder / "mixture.yaml"
    path.write_text(mixture_text(output="", packing="{}", seq_length=str(SEQ_LENGTH), sources=source))
    mixture = load_mixture(path)
    texts = [text for document in documents for text in document.texts]
    tokenizer = Tokenizer.from_file(str(SAMPLE_TOKENIZER / "tokenizer.json"))
    Build(mixture, folder / "warm").run()  # compiles, and fills the page cache
    tokenize_s = build_s = float("inf")
    for attempt in range(3):
        alone_s, num_text_ids = tokenize_alone(tokenizer, texts)
        start = time.process_time()
        report = Build(mixture, folder / str(attempt)).run()
        build_s = min(build_s, time.process_time() - start)
        tokenize_s = min(tokenize_s, alone_s)
    text_rate, build_rate = num_text_ids / tokenize_s, report["ids"] / build_s
    return BuildResult(
        kind,
        len(documents),
        round(tokenize_s, 3),
        round(build_s, 3),
        round(text_rate),
        round(build_rate),
        round(build_rate / text_rate, 3),
        round(tokenize_s / build_s, 3),
        round(report["padding_fraction"], 5),
    )


def tokenize_alone(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, int]:
    """CPU seconds and ids of encoding texts in batches, nothing else."""
    start, num_ids = time.process_time(), 0
    for first in range(0, len(texts), 1024):
        encodings = tokenizer.encode_batch_fast(texts[first : first + 1024], add_special_tokens=False)
        num_ids += sum(len(encoding.ids) for encoding in encodings)
    return time.process_time() - start, num_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    packing = [
        measure_packing(name, number)
        for number in (10_000, 32_768)
        for name in ("pairs", "emoji", "text", "interleaved")
    ]
    for result in packing:
        print(asdict(result))
    builds = []
    for kind, documents in (
        ("pairs", make_pairs(arguments.documents)),
        ("interleaved", make_pages(arguments.documents // 20)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            builds.append(measure_build(kind, documents, Path(folder)))
        print(asdict(builds[-1]))
    if arguments.json:
        results = {"packing": [asdict(r) for r in packing], "build": [asdict(r) for r in builds]}
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
