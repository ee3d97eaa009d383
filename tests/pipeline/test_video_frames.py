"""Sampled frames are held against decoding the whole clip in order, on real clips of many codecs."""

import gzip
import io
import struct
import tarfile
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frame_table import read_frame_table
from pipeline.video_container import VideoError, avi_index_fits, container_format, mp4_matrix
from pipeline.video_frames import FrameSampling, choose_positions, sample_frames, upright
from schemas.quarantine import Reason

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"

AV1, HEVC_OPEN_GOP, STREET, ROTATED = "000000001", "000000002", "000000004", "000000006"
VP9, VARIABLE_RATE, EDIT_LIST = "000010001", "000010002", "000010005"


def _clips(shard: Path | BinaryIO) -> dict[str, bytes]:
    source = {"name": shard} if isinstance(shard, Path) else {"fileobj": shard}
    with tarfile.open(**source) as tar:
        members = [member for member in tar.getmembers() if not member.name.endswith((".json", ".txt"))]
        return {member.name.split(".")[0]: tar.extractfile(member).read() for member in members}


CLIPS = _clips(ROOT / "samples/videos/00000.tar")
with gzip.open(ROOT / "tests/data/hostile/tars/videos.tar.gz") as _file:
    HOSTILE = _clips(_file)


def _decode_in_order(data: bytes, positions: set[int]) -> tuple[int, dict[int, np.ndarray]]:
    """Reference: the whole chosen stream in order, as its number of pictures and those at ``positions``."""
    container = container_format(data)
    table = read_frame_table(data, container)
    with av.open(io.BytesIO(data), format=container) as clip:
        frames = list(clip.decode(clip.streams[table.stream]))
        wanted = {place: frames[place].to_ndarray(format="rgb24") for place in positions}
    return len(frames), {place: upright(frame, table.display_matrix) for place, frame in wanted.items()}


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("key", sorted(CLIPS))
def test_frames_are_those_of_decoding_everything(key: str, decoder: str) -> None:
    data = CLIPS[key]
    table = read_frame_table(data, container_format(data))
    sampling = FrameSampling(num_frames=4 if key == EDIT_LIST else 7, decoder=decoder)
    positions = choose_positions(table.pts, table.end, sampling)
    num_frames, reference = _decode_in_order(data, set(positions))
    assert num_frames == len(table.pts)
    sampled = sample_frames(data, sampling)
    for frame, position in zip(sampled.frames, positions, strict=True):
        difference = np.abs(frame.astype(int) - reference[position])
        # decord and PyAV carry different FFmpegs: their RGB conversions differ by a level or two
        assert difference.mean() < 0.1, (key, position, sampled.decoder)


def test_decoders_that_are_chosen() -> None:
    """decord by default; PyAV for AV1 (unknown to decord) and open GOPs (decord returns other frames)."""
    chosen = {key: sample_frames(data, FrameSampling()).decoder.split()[0] for key, data in CLIPS.items()}
    assert {key for key, name in chosen.items() if name == "av"} == {AV1, HEVC_OPEN_GOP}
    assert {name for key, name in chosen.items() if key not in (AV1, HEVC_OPEN_GOP)} == {"decord"}


def test_decord_alone_refuses_what_it_cannot_read() -> None:
    with pytest.raises(VideoError) as caught:
        sample_frames(CLIPS[AV1], FrameSampling(decoder="decord"))
    assert caught.value.reason is Reason.VIDEO_DECODE_ERROR


def test_times_are_the_middles_of_equal_parts() -> None:
    clip = sample_frames(CLIPS[VP9], FrameSampling())
    assert clip.duration_s == pytest.approx(4.0)
    assert clip.times_s == pytest.approx([0.48, 1.48, 2.48, 3.48])


def test_variable_frame_rate_is_sampled_by_time_not_by_index() -> None:
    clip = sample_frames(CLIPS[VARIABLE_RATE], FrameSampling())
    middles = np.array([1, 3, 5, 7]) / 8 * clip.duration_s
    assert np.all(np.array(clip.times_s) <= middles + 1e-6)
    assert np.all(middles - clip.times_s < 0.3)


def test_edit_list_hides_what_stands_before_the_clip() -> None:
    table = read_frame_table(CLIPS[EDIT_LIST], "mp4")
    assert len(table.pts) == 181  # of 281 frames in the file
    assert sample_frames(CLIPS[EDIT_LIST], FrameSampling()).duration_s == pytest.approx(6.03, abs=0.01)


def test_rotation_is_honoured_alike() -> None:
    decord = sample_frames(CLIPS[ROTATED], FrameSampling(decoder="decord"))
    pyav = sample_frames(CLIPS[ROTATED], FrameSampling(decoder="pyav"))
    assert decord.frames[0].shape == pyav.frames[0].shape == (568, 320, 3)
    assert np.abs(decord.frames[0].astype(int) - pyav.frames[0]).mean() < 0.1


def _with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The clip with another display matrix in its (version 0) video track header."""
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
    ],
)
def test_every_display_matrix(matrix: tuple[int, int, int, int], turned) -> None:
    """As ffmpeg shows them (checked against its output); decord alone turns mirrored clips wrongly."""
    plain = _with_matrix(CLIPS[VARIABLE_RATE], (1, 0, 0, 1))
    stored = sample_frames(plain, FrameSampling(num_frames=1)).frames[0]
    shown = sample_frames(_with_matrix(plain, matrix), FrameSampling(num_frames=1)).frames[0]
    assert np.abs(shown.astype(int) - turned(stored)).mean() < 0.1


def test_matrices_are_read_without_decoding() -> None:
    """Where an edit list hides the first pictures, decoding one to learn how it is turned costs them all."""
    assert mp4_matrix(CLIPS[EDIT_LIST], 1) == (1 << 16, 0, 0, 1 << 16)
    assert mp4_matrix(CLIPS[ROTATED], 1) == (0, 1 << 16, -1 << 16, 0)
    assert mp4_matrix(CLIPS[EDIT_LIST], 99) is None


def test_the_largest_picture_is_chosen_among_streams() -> None:
    shard = SHARED / "videos/00000.tar"
    if not shard.exists():
        pytest.skip(f"{shard} is missing")
    clip = sample_frames(_clips(shard)["000000000"], FrameSampling())
    assert clip.frames[0].shape == (270, 480, 3)


def test_one_frame_is_repeated() -> None:
    clip = sample_frames(HOSTILE["vid_one_frame"], FrameSampling())
    assert clip.times_s == (0.0,) * 4
    assert all(np.array_equal(frame, clip.frames[0]) for frame in clip.frames)


def test_too_few_frames_are_refused_when_asked() -> None:
    with pytest.raises(VideoError) as caught:
        sample_frames(HOSTILE["vid_one_frame"], FrameSampling(min_frames=2))
    assert caught.value.reason is Reason.VIDEO_TOO_FEW_FRAMES


def test_twenty_minutes_are_not_decoded_whole() -> None:
    data = HOSTILE["vid_static_20min"]
    for decoder in ("decord", "pyav"):
        clip = sample_frames(data, FrameSampling(decoder=decoder))
        assert clip.times_s == pytest.approx([150, 450, 750, 1050])
    table = read_frame_table(data, "mp4")
    assert len(table.key_pts) > 1  # so that seeking spares decoding: the benchmark measures by how much


def test_large_pictures_are_refused_before_decoding() -> None:
    with pytest.raises(VideoError) as caught:
        sample_frames(CLIPS[EDIT_LIST], FrameSampling(max_frame_pixels=1000 * 1000))
    assert caught.value.reason is Reason.VIDEO_TOO_LARGE


SOUND = {"vid_size_2x2": (2, 2, 3), "vid_gif_as_mp4": (100, 100, 3), "vid_decord_unordered": (50, 50, 3)}
REFUSED = {
    "vid_audio_only": Reason.VIDEO_NO_VIDEO_STREAM,
    "vid_html": Reason.VIDEO_DECODE_ERROR,
    "vid_jpeg_as_mp4": Reason.VIDEO_TOO_FEW_FRAMES,
    "vid_decord_corrupted": Reason.VIDEO_DECODE_ERROR,
    "vid_corrupt_mdat": Reason.VIDEO_DECODE_ERROR,
    "vid_half_faststart": Reason.VIDEO_DECODE_ERROR,
    "vid_moov_missing": Reason.VIDEO_DECODE_ERROR,
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_odd_but_sound_clips(name: str) -> None:
    clip = sample_frames(HOSTILE[name], FrameSampling())
    assert {frame.shape for frame in clip.frames} == {SOUND[name]}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_clip(name: str) -> None:
    with pytest.raises(VideoError) as caught:
        sample_frames(HOSTILE[name], FrameSampling())
    assert caught.value.reason is REFUSED[name]


@pytest.mark.parametrize("key", sorted(CLIPS))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_cut_clip_is_refused_not_filled(key: str, share: float) -> None:
    """Matroska and AVI decoders answer a cut file with fewer frames and no error."""
    data = CLIPS[key][: int(len(CLIPS[key]) * share)]
    with pytest.raises(VideoError) as caught:
        sample_frames(data, FrameSampling())
    assert caught.value.reason is Reason.VIDEO_DECODE_ERROR


def _avi(num_frames: int) -> bytes:
    """MPEG-4 in AVI; the level of every picture tells its number."""
    output = io.BytesIO()
    with av.open(output, "w", format="avi") as clip:
        stream = clip.add_stream("mpeg4", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            picture = np.full((48, 64, 3), 6 * number, np.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        clip.mux(stream.encode())
    return output.getvalue()


def test_avi_with_and_without_an_index() -> None:
    """decord dies of a segmentation fault on the second; PyAV decodes it from the start."""
    whole = _avi(40)
    without = whole[: whole.index(b"idx1")]
    without = without[:4] + struct.pack("<I", len(without) - 8) + without[8:]
    for data, decoder in ((whole, "decord"), (without, "av")):
        clip = sample_frames(data, FrameSampling())
        assert clip.decoder.split()[0] == decoder
        assert clip.times_s == pytest.approx([0.5, 1.5, 2.5, 3.5])
        assert [round(frame.mean() / 6) for frame in clip.frames] == [5, 15, 25, 35]


def test_avi_whose_index_is_wrong_is_not_given_to_decord() -> None:
    """With bytes added or lost decord may die: found by damaging clips at random."""
    whole = _avi(40)
    first, index = whole.index(b"movi"), whole.index(b"idx1")
    entries = index + 8
    assert avi_index_fits(whole)
    for damaged in (
        whole[: first + 200] + whole[first + 150 :],
        whole[: first - 20] + whole[first - 19 :],
        whole[: index - 10] + bytes(100) + whole[index - 10 :],
        whole[: entries + 8] + b"\xff\xff\xff\x7f" + whole[entries + 12 :],
        whole[: index + 4] + bytes(4) + whole[index + 8 :],
        whole[: entries + 3],
        whole[: first + 4],
    ):
        assert not avi_index_fits(damaged)
    absolute = bytearray(whole)  # some programs count from the beginning of the file
    for entry in range(entries, len(whole) - 15, 16):
        offset = struct.unpack_from("<I", whole, entry + 8)[0]
        struct.pack_into("<I", absolute, entry + 8, offset + first)
    assert avi_index_fits(bytes(absolute))


def test_empty() -> None:
    with pytest.raises(VideoError) as caught:
        sample_frames(b"", FrameSampling())
    assert caught.value.reason is Reason.VIDEO_EMPTY


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<MPD></MPD>",
    ],
)
def test_playlists_are_no_clips(playlist: bytes) -> None:
    """FFmpeg would follow them to other files and addresses."""
    with pytest.raises(VideoError, match="no known video container"):
        sample_frames(playlist, FrameSampling())


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0\0\0\x18ftypmp42", b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI "]),
)
def test_noise_is_refused_with_a_reason(noise: bytes, magic: bytes) -> None:
    with pytest.raises(VideoError):
        sample_frames(magic + noise, FrameSampling())


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True).map(sorted),
    st.integers(1, 500),
    st.integers(1, 12),
    st.sampled_from(["uniform_middle", "uniform_ends"]),
)
def test_chosen_positions(pts: list[int], last_duration: int, count: int, rule: str) -> None:
    end = pts[-1] + last_duration
    positions = choose_positions(pts, end, FrameSampling(num_frames=count, rule=rule))
    assert len(positions) == count
    assert positions == sorted(positions)
    assert 0 <= positions[0] <= positions[-1] < len(pts)
    if rule == "uniform_ends" and count > 1:
        assert (positions[0], positions[-1]) == (0, len(pts) - 1)
    if rule == "uniform_middle":
        for part, position in enumerate(positions):
            middle = pts[0] + (2 * part + 1) * (end - pts[0]) // (2 * count)
            assert pts[position] <= middle
            assert position + 1 == len(pts) or pts[position + 1] > middle


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="num_frames"):
        FrameSampling(num_frames=0)
    with pytest.raises(ValueError, match="rule"):
        FrameSampling(rule="random")
    with pytest.raises(ValueError, match="decoder"):
        FrameSampling(decoder="cv2")


@pytest.mark.shared
def test_every_shared_clip_gives_the_same_frames_with_both_decoders() -> None:
    shards = sorted((SHARED / "videos").glob("*.tar"))
    if not shards:
        pytest.skip(f"{SHARED}/videos is missing")
    for key, data in {key: clip for shard in shards for key, clip in _clips(shard).items()}.items():
        auto, pyav = sample_frames(data, FrameSampling()), sample_frames(data, FrameSampling(decoder="pyav"))
        assert auto.times_s == pyav.times_s, key
        for ours, theirs in zip(auto.frames, pyav.frames, strict=True):
            assert np.abs(ours.astype(int) - theirs).mean() < 4, key  # 10-bit chroma: 3.3
