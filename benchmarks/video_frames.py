"""Sampling four frames of a clip against decoding the whole clip, per clip and decoder.

    python benchmarks/video_frames.py [SHARD.tar ...]

Processor time of one process, all threads. ``all`` decodes every frame in order with PyAV and converts only the
four, which is the least that a sampler without a frame table has to do.
"""

import io
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from pipeline.video_container import VideoError, container_format
from pipeline.video_frames import FrameSampling, choose_positions, read_frame_table, sample_frames

SAMPLES = Path(__file__).parents[1] / "samples/videos/00000.tar"
ROUNDS = 5


def clips(shard: Path) -> dict[str, bytes]:
    """Clips of a shard by member name."""
    with tarfile.open(shard) as tar:
        members = [member for member in tar if not member.name.endswith((".txt", ".json"))]
        return {member.name: tar.extractfile(member).read() for member in members}


def decode_all(data: bytes) -> None:
    """Every frame in order; the four wanted ones as RGB."""
    container = container_format(data)
    table = read_frame_table(data, container)
    wanted = set(choose_positions(table.pts, table.end, FrameSampling()))
    with av.open(io.BytesIO(data), format=container) as clip:
        stream = clip.streams[table.stream]
        stream.codec_context.thread_count = 1
        for position, frame in enumerate(clip.decode(stream)):
            if position in wanted:
                frame.to_ndarray(format="rgb24")


def milliseconds(work: Callable[[], object]) -> float | None:
    """The fastest of a few rounds; None if the decoder refuses the clip."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        try:
            work()
        except VideoError:
            return None
        best = min(best, time.process_time() - begin)
    return 1e3 * best


def main(shards: list[str]) -> None:
    print(f"{'clip':18} {'frames':>6} {'all ms':>8} {'decord ms':>9} {'PyAV ms':>8} {'auto ms':>8} all/auto")
    sums = [0.0, 0.0]
    for shard in shards or [str(SAMPLES)]:
        for name, data in clips(Path(shard)).items():
            num_frames = len(read_frame_table(data, container_format(data)).pts)
            everything = milliseconds(lambda data=data: decode_all(data))
            times = {
                decoder: milliseconds(
                    lambda data=data, decoder=decoder: sample_frames(data, FrameSampling(decoder=decoder))
                )
                for decoder in ("decord", "pyav", "auto")
            }
            shown = {key: "-" if value is None else f"{value:.1f}" for key, value in times.items()}
            ratio = everything / times["auto"]
            sums = [sums[0] + everything, sums[1] + times["auto"]]
            print(
                f"{name:18} {num_frames:6} {everything:8.1f} {shown['decord']:>9} {shown['pyav']:>8}"
                f" {shown['auto']:>8} {ratio:8.2f}"
            )
    print(
        f"together: {sums[0]:.0f} ms for all frames, {sums[1]:.0f} ms for four a clip:"
        f" {sums[0] / sums[1]:.2f} times"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
