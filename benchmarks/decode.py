"""Pictures a second and core, decoded and squashed: Pillow against ours, then the pool against a plain loop.

    python -m benchmarks.decode [FOLDER_OR_TAR...]

Without arguments: the JPEGs of `tests/data` and of a folder `shared/data/pairs` beside the checkout where
there is one. Large pictures are the same ones, enlarged to 12 megapixels and encoded again.

Figures are processor time unless they say wall: on a shared machine, read the ratios. Methods take turns
picture by picture, so that a busy neighbour slows all of them.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.decode import DecodedFrames, DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from tokenizer.image_file import fast_jpeg_pixels, open_image
from tokenizer.preprocess import PreprocessConfig, load_image
from tokenizer.resize import Pixels, squash_with_pillow

ROOT = Path(__file__).resolve().parents[1]
CONFIG = PreprocessConfig()
IN_FLIGHT = 32


def pictures(paths: Sequence[Path]) -> Iterator[bytes]:
    """JPEG bytes from files, folders and tars."""
    for path in paths:
        if path.is_dir():
            yield from pictures(sorted(path.iterdir()))
        elif path.suffix in (".jpg", ".jpeg"):
            yield path.read_bytes()
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name.endswith(".jpg") else None
                    if file is not None:
                        yield file.read()


def default_paths() -> list[Path]:
    shared = ROOT.parent / "shared" / "data" / "pairs"
    return [ROOT / "tests" / "data" / "pixels", *([shared] if shared.exists() else [])]


def enlarged(data: bytes, num_pixels: int = 12_000_000) -> bytes:
    """The same picture as a camera would store it: about `num_pixels`, quality 90, 4:2:0."""
    with Image.open(io.BytesIO(data)) as image:
        factor = (num_pixels / (image.width * image.height)) ** 0.5
        size = round(image.width * factor), round(image.height * factor)
        file = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def by_pillow(data: bytes) -> Pixels:
    """What the release does; this Pillow's own order of passes."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))


def fast_decode_pillow_resize(data: bytes) -> Pixels:
    """simplejpeg with Pillow's resize: what the fast decoder alone brings."""
    with open_image(data, CONFIG.max_pixels) as image:
        pixels = fast_jpeg_pixels(image, data)
        return squash_with_pillow(
            np.asarray(image.convert("RGB")) if pixels is None else pixels, CONFIG.filter
        )


def ours(data: bytes) -> Pixels:
    return load_image(data, CONFIG)


METHODS: dict[str, Callable[[bytes], Pixels]] = {
    "Pillow": by_pillow,
    "simplejpeg + Pillow resize": fast_decode_pillow_resize,
    "ours": ours,
}


def compare_methods(title: str, files: Sequence[bytes], repeats: int) -> dict[str, dict[str, float]]:
    """Print the speed of every method, its ratio to Pillow, and how many pictures are equal; return them."""
    best = {name: np.full(len(files), np.inf) for name in METHODS}
    equal = dict.fromkeys(METHODS, 0)
    for index, data in enumerate(files):
        with Image.open(io.BytesIO(data)) as image:
            reference = squash_with_pillow(np.asarray(image.convert("RGB")), CONFIG.filter)
        for repeat in range(repeats):
            for name, method in METHODS.items():
                started = time.process_time()
                pixels = method(data)
                best[name][index] = min(best[name][index], time.process_time() - started)
                equal[name] += repeat == 0 and np.array_equal(pixels, reference)
    print(
        f"\n{title}: {len(files)} pictures, {sum(map(len, files)) / len(files) / 1000:.0f} kB each on average"
    )
    for name, seconds in best.items():
        ratio = best["Pillow"].sum() / seconds.sum()
        print(
            f"  {name:28} {len(files) / seconds.sum():7.1f} images/s a core  {ratio:5.2f} x Pillow"
            f"  {equal[name]}/{len(files)} equal"
        )
    return {
        name: {"images_per_s": len(files) / seconds.sum(), "equal_fraction": equal[name] / len(files)}
        for name, seconds in best.items()
    }


def busy(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def processor_time_s() -> float:
    """Of this process and its living children (their main threads, in which they decode)."""
    nanoseconds = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            nanoseconds += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return time.process_time() + nanoseconds / 1e9


def measure_pool(
    files: Sequence[bytes], num_workers: int, num_tasks: int, is_busy: bool
) -> tuple[float, float]:
    """(wall, processor) seconds a picture through a warm pool, optionally beside a busy Python thread."""
    stop = threading.Event()
    with DecodePool(DecodePoolConfig(num_workers=num_workers)) as pool:
        for future in [pool.submit(DecodeTask(files[0])) for _ in range(8 * num_workers)]:
            future.result()
        if is_busy:
            threading.Thread(target=busy, args=(stop,), daemon=True).start()
        started, processor_started = time.perf_counter(), processor_time_s()
        in_flight: deque[Future[DecodedFrames]] = deque()
        for i in range(num_tasks):
            in_flight.append(pool.submit(DecodeTask(files[i % len(files)])))
            if len(in_flight) >= IN_FLIGHT:  # as an engine does: results are used and dropped as they come
                in_flight.popleft().result()
        for future in in_flight:
            future.result()
        wall_s, processor_s = time.perf_counter() - started, processor_time_s() - processor_started
        stop.set()
    return wall_s / num_tasks, processor_s / num_tasks


def measure_loop(files: Sequence[bytes], num_tasks: int) -> tuple[float, float]:
    """(wall, processor) seconds a picture of a plain loop in this thread."""
    started, processor_started = time.perf_counter(), time.process_time()
    for i in range(num_tasks):
        ours(files[i % len(files)])
    return (time.perf_counter() - started) / num_tasks, (time.process_time() - processor_started) / num_tasks


def compare_pool(files: Sequence[bytes], num_tasks: int, rounds: int) -> dict[str, float]:
    """Print and return the pool's speed a worker over that of the loops run before and after it."""
    found = {}
    print(f"\npool over a plain loop, medians of {rounds} rounds, {os.cpu_count()} cores")
    for num_workers, is_busy in ((1, False), (2, False), (1, True)):
        ratios = []
        for _ in range(rounds):
            before = measure_loop(files, num_tasks)
            pool = measure_pool(files, num_workers, num_tasks * num_workers, is_busy)
            loop = np.mean([before, measure_loop(files, num_tasks)], axis=0)
            ratios.append(loop / pool / (num_workers, 1))
        wall, processor = np.median(ratios, axis=0)
        figure = "" if is_busy else f", by processor time {processor:.3f}"
        where = " beside a busy Python thread" if is_busy else ""
        print(f"  {num_workers} worker(s){where}: wall {wall:.3f} of the loop a worker{figure}")
        found[f"{num_workers} worker(s){where}"] = float(wall)
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="JPEG files, folders, or tars of them")
    parser.add_argument("--limit", type=int, default=120, help="pictures of web size")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each picture; the best counts")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the pool's comparison")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    files = list(islice(pictures(options.paths or default_paths()), options.limit))
    if not files:
        sys.exit(f"no JPEG found in {', '.join(map(str, options.paths))}")
    large = [enlarged(data) for data in files[:6]]
    results = {
        "web pictures": compare_methods("web pictures", files, options.repeats),
        "12 megapixels": compare_methods("12-megapixel pictures", large, max(options.repeats // 2, 1)),
        "pool": compare_pool(files, num_tasks=4 * len(files), rounds=options.rounds),
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
