"""Samples per second of our tar reader beside webdataset's and a bare `tarfile` loop, on tars in memory.

    python benchmarks/tar_reader.py [--seconds 2]

Many small members show the cost of the interpreter per sample; few large ones the cost per byte.
"""

import argparse
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import webdataset.tariterators as wds
import zstandard

from pipeline.sources.tar_reader import TarSample, read_samples


def make_tar(num_samples: int, image_bytes: int) -> bytes:
    """A shard in the img2dataset layout, random bytes for images."""
    buffer = io.BytesIO()
    image = os.urandom(image_bytes)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(num_samples):
            for extension, data in (("jpg", image), ("json", b"x" * 400), ("txt", b"x" * 60)):
                info = tarfile.TarInfo(f"{index:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_ours(data: bytes) -> int:
    return sum(isinstance(item, TarSample) for item in read_samples(io.BytesIO(data), "shard"))


def read_webdataset(data: bytes) -> int:
    def members() -> Iterator[dict]:
        for member in wds.tar_file_iterator(io.BytesIO(data)):
            member["__url__"] = "shard"
            yield member

    return sum(1 for _ in wds.group_by_keys(members()))


def read_tarfile(data: bytes) -> int:
    """No grouping: members / 3."""
    num_members = 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        for info in tar:
            tar.extractfile(info).read()
            tar.members = []
            num_members += 1
    return num_members // 3


def samples_per_s(read: Callable[[bytes], int], data: bytes, num_samples: int, seconds: float) -> float:
    """Best of the runs that fit into ``seconds``."""
    best, deadline = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < deadline:
        start = time.perf_counter()
        if read(data) != num_samples:
            raise RuntimeError(f"{read.__name__} lost samples")
        best = max(best, num_samples / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each figure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds, results = options.seconds, {}
    print(f"{'shard':28} {'ours/s':>10} {'webdataset/s':>13} {'tarfile/s':>10} {'ratio':>6} {'MB/s':>6}")
    for label, num_samples, image_bytes in (
        ("5,000 samples of 200 B", 5_000, 200),
        ("2,000 samples of 30 kB", 2_000, 30_000),
        ("20 samples of 10 MB", 20, 10_000_000),
    ):
        data = make_tar(num_samples, image_bytes)
        rates = [
            samples_per_s(read, data, num_samples, seconds)
            for read in (read_ours, read_webdataset, read_tarfile)
        ]
        results[label] = dict(zip(("ours", "webdataset", "tarfile"), rates, strict=True))
        megabytes = rates[0] * len(data) / num_samples / 1e6
        print(
            f"{label:28} {rates[0]:10.0f} {rates[1]:13.0f} {rates[2]:10.0f} "
            f"{rates[0] / rates[1]:6.2f} {megabytes:6.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    data = make_tar(2_000, 30_000)
    packed = zstandard.ZstdCompressor().compress(data)
    rate = samples_per_s(read_ours, packed, 2_000, seconds)
    print(
        f"{'2,000 of 30 kB, .tar.zst':28} {rate:10.0f} {'':13} {'':10} {'':6} {rate * len(data) / 2e9:6.0f}"
    )


if __name__ == "__main__":
    main()
