"""Sampling four frames of a clip against decoding the whole clip, per clip and decoder.

    python -m benchmarks.video_frames [--times N] [SHARD.tar ...]

Processor time of one process, all threads. ``all`` decodes every frame in order with PyAV and converts only
the four, which is the least that a sampler without a frame table has to do. Clips of one group of pictures
must be decoded almost whole by anybody; ``--times`` makes longer ones of them.
"""

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from pipeline.frame_table import read_frame_table
from pipeline.video_container import VideoError, container_format
from pipeline.video_frames import FrameSampling, choose_positions, sample_frames

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


def lengthened(data: bytes, times: int) -> bytes:
    """The clip again and again, by copying its packets: real footage, with a key frame each time."""
    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as target:
        stream = None
        for repetition in range(times):
            with av.open(io.BytesIO(data)) as source:
                video = source.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.dts is not None:
                        packet.pts += repetition * video.duration
                        packet.dts += repetition * video.duration
                        packet.stream = stream
                        target.mux(packet)
    return output.getvalue()


def milliseconds(work: Callable[[], object]) -> float | None:
    """The fastest of a few rounds; None if the decoder refuses the clip."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        try:
            work()
        except (VideoError, av.FFmpegError):
            return None
        best = min(best, time.process_time() - begin)
    return 1e3 * best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1, help="repeat each mp4 so many times")
    parser.add_argument("--json", type=Path)
    parser.add_argument("shards", nargs="*", default=[str(SAMPLES)])
    options = parser.parse_args()
    print(f"{'clip':22} {'frames':>6} {'all ms':>8} {'decord ms':>9} {'PyAV ms':>8} {'auto ms':>8} all/auto")
    sums = [0.0, 0.0]
    for shard in options.shards:
        for name, clip in clips(Path(shard)).items():
            if options.times > 1 and not name.endswith(".mp4"):
                continue
            data = lengthened(clip, options.times) if options.times > 1 else clip
            everything, automatic = measure(name, data)
            sums = [sums[0] + everything, sums[1] + automatic]
    print(
        f"together: {sums[0]:.0f} ms for all, {sums[1]:.0f} ms for four a clip: {sums[0] / sums[1]:.2f} times"
    )
    if options.json:
        options.json.write_text(json.dumps({"all_ms": sums[0], "four_ms": sums[1]}))


def measure(name: str, data: bytes) -> tuple[float, float]:
    """Print the times of one clip; returns those of decoding all and of the default, or zeros if refused."""
    everything = milliseconds(lambda: decode_all(data))
    times = {
        decoder: milliseconds(lambda decoder=decoder: sample_frames(data, FrameSampling(decoder=decoder)))
        for decoder in ("decord", "pyav", "auto")
    }
    if everything is None or times["auto"] is None:
        return 0.0, 0.0
    num_frames = len(read_frame_table(data, container_format(data)).pts)
    decord, pyav, automatic = ("-" if value is None else f"{value:.1f}" for value in times.values())
    ratio = everything / times["auto"]
    print(f"{name:22} {num_frames:6} {everything:8.1f} {decord:>9} {pyav:>8} {automatic:>8} {ratio:8.2f}")
    return everything, times["auto"]


if __name__ == "__main__":
    main()
