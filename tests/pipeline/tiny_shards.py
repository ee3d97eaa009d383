"""Tiny WebDataset shards, the null tokenizer and the job as a subprocess: what the engine's tests share."""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.batching_encoder import BatchingEncoder
from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.encode_shard import ShardEncoder, ShardSettings
from pipeline.null_encoder import NullEncoder
from pipeline.shard_task import ShardTask, ledger_name
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.records import RawImage
from pipeline.sources.tar_source import TarSource
from pipeline.storage import Folder, LocalFolder
from schemas.token_shard import read_footer

ROOT = Path(__file__).resolve().parents[2]
JOB = [sys.executable, str(ROOT / "jobs" / "tokenize_pairs.py")]
PAIRS = TarSource(documents=read_pairs, config=PairsConfig())


def png(seed: int, side: int = 8) -> bytes:
    """A small picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair_members(key: str, seed: int) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(seed)), (f"{key}.txt", f"caption {seed}".encode())]


def write_shards(folder: Path, num_shards: int, samples: int, bad_every: int = 7) -> Path:
    """Shards ``00000.tar`` ... of pairs; every ``bad_every``-th picture is no picture."""
    for shard in range(num_shards):
        members = []
        for index in range(samples):
            seed = shard * samples + index
            one = pair_members(f"{seed:06}", seed)
            if bad_every and seed % bad_every == bad_every - 1:
                one[0] = (one[0][0], b"this is no picture")
            members += one
        write_tar(folder / f"{shard:05}.tar", members)
    return folder


@contextmanager
def open_encoder(
    folder: Folder | Path, *, batch_size: int = 4, decode_workers: int = 0, **changes: object
) -> Iterator[ShardEncoder]:
    """A shard encoder with the null tokenizer; decoding in the calling thread unless asked otherwise."""
    encoder = NullEncoder()
    with (
        BatchingEncoder(encoder, batch_size, flush_after_s=30.0) as batching,
        DecodePool(DecodePoolConfig(num_workers=decode_workers)) as pool,
    ):

        def decode(image: RawImage) -> "Future[DecodedFrames]":
            return pool.submit(DecodeTask(image.data))

        tools = ShardEncoder(
            read=PAIRS,
            decode=decode,
            batching=batching,
            folder=LocalFolder(folder) if isinstance(folder, Path) else folder,
            settings=ShardSettings(kind="pairs", fingerprint=encoder.fingerprint),
        )
        yield replace(tools, **changes)


def task_for(path: Path) -> ShardTask:
    return ShardTask(path.name.removesuffix(".tar"), str(path), path.stat().st_size)


def run_job(
    *flags: str, environment: Mapping[str, str] | None = None, timeout: float = 120, **options: object
) -> subprocess.CompletedProcess[str]:
    """The pairs job in a process of its own; without Ray and with the null tokenizer unless flags say so."""
    return subprocess.run(
        job_command(*flags),
        env=job_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def job_command(*flags: str) -> list[str]:
    defaults = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0", "--batch-size", "4"]
    kept = [
        part
        for name, value in zip(defaults[::2], defaults[1::2], strict=True)
        if name not in flags
        for part in (name, value)
    ]
    return [*JOB, *flags, *kept]


def job_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    # Ray tests before this one leave its variables in the environment of the test process.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | dict(more or {})


def token_files(folder: Path) -> dict[str, bytes]:
    """Content of all token shards and ledgers, by name: what must be the same byte for byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0][0] not in "_."
    }


def ledger_of(shard: Path) -> Path:
    """The ledger that a token shard names."""
    footer = read_footer(shard)
    assert footer.quarantine is not None, f"{shard.name} names no ledger"
    return shard.with_name(ledger_name(shard.stem, footer.quarantine.sha256))


def leftovers(folder: Path) -> list[str]:
    """Unfinished files."""
    return [path.name for path in folder.rglob(".tmp-*")]


def wait_until(condition: Callable[[], bool], timeout_s: float = 180.0) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
