"""Which Parquet layout stores 32 codes an image in the fewest bytes, and how fast is it?

    python benchmarks/codes_encoding.py [--images 200000] [--json FILE]

Uniform codes have 32 x 13 bits = 52 bytes of entropy, the limit for any lossless layout without a model
of the codes; skewed codes (a Zipf law over the codebook) show what an entropy coder gains on real ones.
Ratios are to that limit (bytes) and to the uncompressed list column (speed), measured in the same run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CODEBOOK_SIZE, CODES_PER_IMAGE = 8192, 32
LIMIT_BYTES = CODES_PER_IMAGE * 13 / 8
ROWS_PER_GROUP = 8192


@dataclass(frozen=True)
class Layout:
    """One candidate: how codes become an Arrow column, and how Parquet writes that column."""

    name: str
    to_array: Callable[[np.ndarray], pa.Array]
    options: dict[str, Any]


@dataclass(frozen=True)
class Result:
    layout: str
    codes: str
    bytes_per_image: float
    over_limit: float
    write_mb_s: float
    read_mb_s: float


def as_list(codes: np.ndarray) -> pa.Array:
    offsets = np.arange(0, codes.size + 1, CODES_PER_IMAGE, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(codes.ravel()))


def as_fixed_list(codes: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), CODES_PER_IMAGE)


def as_binary(codes: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in codes], pa.binary(2 * CODES_PER_IMAGE))


def layouts() -> list[Layout]:
    plain: dict[str, Any] = {"use_dictionary": False}
    split = plain | {"use_byte_stream_split": True}
    delta = plain | {"column_encoding": {"codes.list.element": "DELTA_BINARY_PACKED"}}
    zstd = {"compression": "zstd"}
    return [
        Layout("list, plain, none", as_list, plain | {"compression": "none"}),
        Layout("list, plain, zstd 3", as_list, plain | zstd | {"compression_level": 3}),
        Layout("list, split, zstd 1", as_list, split | zstd | {"compression_level": 1}),
        Layout("list, split, zstd 3", as_list, split | zstd | {"compression_level": 3}),
        Layout("list, split, zstd 9", as_list, split | zstd | {"compression_level": 9}),
        Layout("list, dictionary, zstd 3", as_list, zstd | {"use_dictionary": True, "compression_level": 3}),
        Layout("list, delta, zstd 3", as_list, delta | zstd | {"compression_level": 3}),
        Layout("fixed list, split, zstd 3", as_fixed_list, split | zstd | {"compression_level": 3}),
        Layout("binary(64), split, zstd 3", as_binary, split | zstd | {"compression_level": 3}),
    ]


def draw_codes(kind: str, num_images: int) -> np.ndarray:
    """(num_images, 32) uint16."""
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.integers(0, CODEBOOK_SIZE, (num_images, CODES_PER_IMAGE), dtype=np.uint16)
    weights = 1 / np.arange(1, CODEBOOK_SIZE + 1)
    ranks = rng.choice(CODEBOOK_SIZE, size=(num_images, CODES_PER_IMAGE), p=weights / weights.sum())
    return rng.permutation(CODEBOOK_SIZE)[ranks].astype(np.uint16)


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(layout: Layout, kind: str, codes: np.ndarray, repeats: int) -> Result:
    table = pa.table({"codes": layout.to_array(codes)})
    sink = BytesIO()

    def write() -> None:
        sink.seek(0)
        sink.truncate()
        pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP, write_statistics=False, **layout.options)

    write_s = median_seconds(write, repeats)
    data = sink.getvalue()
    read_s = median_seconds(lambda: pq.read_table(pa.BufferReader(data)), repeats)
    assert pq.read_table(pa.BufferReader(data)).equals(table), layout.name
    bytes_per_image, megabytes = len(data) / len(codes), codes.nbytes / 1e6
    return Result(
        layout.name,
        kind,
        round(bytes_per_image, 2),
        round(bytes_per_image / LIMIT_BYTES, 3),
        round(megabytes / write_s, 1),
        round(megabytes / read_s, 1),
    )


def print_table(results: list[Result]) -> None:
    baseline = {result.codes: result for result in results if result.layout == "list, plain, none"}
    print(
        f"{'layout':28}{'codes':8}{'B/image':>9}{'/limit':>8}{'write MB':>10}{'read MB':>9}{'read/plain':>11}"
    )
    for r in results:
        relative_read = r.read_mb_s / baseline[r.codes].read_mb_s
        print(
            f"{r.layout:28}{r.codes:8}{r.bytes_per_image:9.2f}{r.over_limit:8.3f}"
            f"{r.write_mb_s:10.1f}{r.read_mb_s:9.1f}{relative_read:11.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results as JSON")
    arguments = parser.parse_args()
    results = []
    for kind in ("uniform", "skewed"):
        codes = draw_codes(kind, arguments.images)
        results += [measure(layout, kind, codes, arguments.repeats) for layout in layouts()]
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
