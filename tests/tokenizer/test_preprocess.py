"""Pictures of every kind to 224x224: known pixels, hostile files, limits, the fast path against Pillow."""

import hashlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from schemas.quarantine import Reason
from tokenizer.image_file import fast_jpeg_pixels, open_image
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image
from tokenizer.resize import FILTERS, Filter, Pixels, squash_with_pillow

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"
KNOWN_PIXELS = json.loads((DATA / "pixels" / "sha256.json").read_text())
HOSTILE = json.loads((DATA / "hostile_images" / "expect.json").read_text())
REFERENCE, CLEAN = PreprocessConfig(), PreprocessConfig(color="clean")

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no folder `shared` beside the checkout")


def shared_cases() -> list[dict[str, str]]:
    path = SHARED / "data" / "hostile" / "EXPECT.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else []
    return [case for case in cases if case["cls"] == "image"]


def shared_pictures() -> Iterator[tuple[str, bytes]]:
    """Every image member of the real shards, by shard and name."""
    for shard in sorted((SHARED / "data").glob("*/*.tar")) + sorted(
        (SHARED / "data").glob("interleaved/*/*.tar")
    ):
        if "hostile" in shard.parts or ("emoji" in shard.parts and shard.name != "00000.tar"):
            continue
        with tarfile.open(shard) as tar:
            for member in tar:
                if Path(member.name).suffix.lower() in (".jpg", ".png", ".webp", ".gif"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield f"{shard.name}:{member.name}", file.read()


def by_pillow(data: bytes, filter_name: Filter = "bicubic") -> Pixels:
    """What the release does, with Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return squash_with_pillow(np.asarray(image.convert("RGB")), filter_name)


def outcome(data: bytes, config: PreprocessConfig = REFERENCE) -> Reason | None:
    """None when the picture comes out, else why it was refused."""
    try:
        pixels = load_image(data, config)
    except ImageError as error:
        return error.reason
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    return None


@pytest.mark.parametrize("name", KNOWN_PIXELS)
@pytest.mark.parametrize("filter_name", FILTERS)
def test_known_pixels(name: str, filter_name: Filter) -> None:
    pixels = load_image(DATA / "pixels" / name, PreprocessConfig(filter=filter_name))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == KNOWN_PIXELS[name][filter_name]


@pytest.mark.shared
@needs_shared
def test_all_canonical_pixels() -> None:
    golden = np.load(SHARED / "golden" / "pixels.npz")
    assert len(golden.files) == 40
    for name in golden.files:
        shard, member, filter_name = name.split(":")
        with tarfile.open(SHARED / "data" / "pairs" / shard) as tar:
            file = tar.extractfile(member)
            assert file is not None
            pixels = load_image(file.read(), PreprocessConfig(filter=filter_name))
        np.testing.assert_array_equal(pixels, golden[name], err_msg=name)


@pytest.mark.shared
@needs_shared
def test_every_real_picture_equals_pillow() -> None:
    num_pictures = num_fast = 0
    for name, data in shared_pictures():
        with open_image(data, REFERENCE.max_pixels) as image:
            num_fast += fast_jpeg_pixels(image, data) is not None
        for filter_name in FILTERS:
            pixels = load_image(data, PreprocessConfig(filter=filter_name))
            np.testing.assert_array_equal(pixels, by_pillow(data, filter_name), err_msg=name)
        num_pictures += 1
    assert num_pictures >= 900
    assert num_fast >= 280


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case["file"])
@pytest.mark.parametrize("config", [REFERENCE, CLEAN], ids=lambda config: config.color)
def test_hostile_pictures(case: dict[str, str], config: PreprocessConfig) -> None:
    check_expectation(case, outcome((DATA / "hostile_images" / case["file"]).read_bytes(), config))


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("case", shared_cases(), ids=lambda case: case["id"])
@pytest.mark.parametrize("config", [REFERENCE, CLEAN], ids=lambda config: config.color)
def test_all_hostile_pictures(case: dict[str, str], config: PreprocessConfig) -> None:
    check_expectation(case, outcome((SHARED / "data" / "hostile" / case["loose"]).read_bytes(), config))


def black_png(width: int, height: int) -> bytes:
    """Grey, 8 bits; a thousandth of its pixels in bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 50_000_000), (50_000_000, 1), (1, 399_458)], ids=str)
def test_a_side_that_no_picture_has_is_refused_from_the_header(size: tuple[int, int]) -> None:
    """Within `max_pixels`, but squashed in one direction it would have 11 thousand million of them."""
    with pytest.raises(ImageError, match="the limit is 399457 a side") as refused:
        load_image(black_png(*size), REFERENCE)
    assert refused.value.reason == Reason.IMAGE_TOO_LARGE


def test_the_longest_side_is_read() -> None:
    for size in ((1, 399_457), (399_457, 1)):
        assert outcome(black_png(*size)) is None


@pytest.mark.parametrize("spare_mib", [4, 60, 100, 180, 260])
def test_whatever_step_lacks_memory_the_picture_is_too_large(spare_mib: int) -> None:
    """36 megapixels: 36 MiB to inflate, 144 more for RGB, 108 for the array."""
    program = f"""
import resource
from pathlib import Path
from tests.tokenizer.test_preprocess import REFERENCE, black_png
from tokenizer.preprocess import ImageError, load_image
load_image(black_png(4, 4), REFERENCE)
data = black_png(6000, 6000)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + {spare_mib} * 2**20, -1))
try:
    load_image(data, REFERENCE)
except ImageError as error:
    print(error)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert finished.stdout.startswith("image_too_large: not enough memory")


def check_expectation(case: dict[str, str], refused: Reason | None) -> None:
    if case["expect"] == "accept":
        assert refused is None, case["what"]
    elif case["expect"] == "quarantine":
        # SVG bytes are one thing to us under any name: we read bytes, not extensions
        is_svg_by_another_name = "SVG text" in case["what"]
        expected = "image_unsupported_format" if is_svg_by_another_name else case["reason"]
        assert refused == expected, case["what"]
    else:
        assert refused in (None, case["reason"]), case["what"]


def jpeg(image: Pixels, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", **options)
    return file.getvalue()


def smooth_noise(height: int, width: int, seed: int) -> Pixels:
    """A picture with edges and gradients, so that JPEG has something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


jpeg_files = st.builds(
    lambda height, width, seed, **options: jpeg(smooth_noise(height, width, seed), **options),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(0, 2**32 - 1),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart_marker_rows=st.integers(0, 2),
)


@settings(max_examples=150, deadline=None)
@given(data=jpeg_files)
def test_fast_jpegs_equal_pillow(data: bytes) -> None:
    with open_image(data, REFERENCE.max_pixels) as image:
        pixels = fast_jpeg_pixels(image, data)
    assert pixels is not None
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))


@settings(max_examples=150, deadline=None)
@given(data=jpeg_files, draw=st.data())
def test_damaged_jpegs_get_pillows_verdict(data: bytes, draw: st.DataObject) -> None:
    """Cut or overwritten anywhere: refused with a reason, or Pillow's pixels; never another error."""
    position = draw.draw(st.integers(1, len(data) - 1))
    garbage = draw.draw(st.none() | st.binary(min_size=1, max_size=8))
    damaged = (
        data[:position] if garbage is None else data[:position] + garbage + data[position + len(garbage) :]
    )
    try:
        expected = by_pillow(damaged)
    except Exception:  # whatever Pillow raises
        assert outcome(damaged) is not None
    else:
        np.testing.assert_array_equal(load_image(damaged, PreprocessConfig(max_pixels=2**26)), expected)


def test_a_cut_jpeg_is_truncated_not_grey() -> None:
    data = jpeg(smooth_noise(300, 300, 0))
    for num_bytes in range(len(data) // 4, len(data) - 200, 997):
        assert outcome(data[:num_bytes]) == Reason.IMAGE_TRUNCATED


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_cut_files_are_refused(image_format: str) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth_noise(100, 100, 0)).save(file, image_format)
    assert outcome(file.getvalue()) is None
    assert outcome(file.getvalue()[: len(file.getvalue()) // 2]) is not None


def test_limits() -> None:
    data = jpeg(smooth_noise(100, 50, 0))
    assert outcome(data, PreprocessConfig(max_pixels=5000)) is None
    assert outcome(data, PreprocessConfig(max_pixels=4999)) == Reason.IMAGE_TOO_LARGE
    assert outcome(data, PreprocessConfig(max_bytes=len(data))) is None
    assert outcome(data, PreprocessConfig(max_bytes=len(data) - 1)) == Reason.IMAGE_TOO_LARGE
    assert outcome(data, PreprocessConfig(min_side=50)) is None
    assert outcome(data, PreprocessConfig(min_side=51)) == Reason.IMAGE_TOO_SMALL
    assert outcome(data, PreprocessConfig(max_aspect_ratio=2.0)) is None
    assert outcome(data, PreprocessConfig(max_aspect_ratio=1.9)) == Reason.IMAGE_BAD_ASPECT_RATIO


@pytest.mark.parametrize(
    "wrong",
    [
        {"filter": "lanczos"},
        {"color": "grey"},
        {"max_pixels": 0},
        {"max_pixels": 2**30},
        {"max_bytes": 0},
        {"min_side": 0},
        {"max_aspect_ratio": 0.5},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreprocessConfig(**wrong)


def test_truncation_tolerance_of_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(DATA / "hostile_images" / "trunc50_baseline.jpg", REFERENCE)


def test_missing_file_is_not_a_bad_image() -> None:
    with pytest.raises(FileNotFoundError):
        load_image(Path("no such file.jpg"), REFERENCE)


def test_fingerprint_holds_what_changes_pixels_and_no_limits() -> None:
    base = REFERENCE.fingerprint_components()
    assert json.loads(json.dumps(base)) == base
    for changed in (CLEAN, PreprocessConfig(filter="bilinear")):
        assert changed.fingerprint_components() != base
    limited = PreprocessConfig(max_pixels=10, max_bytes=10, min_side=9, max_aspect_ratio=3)
    assert limited.fingerprint_components() == base


def test_imports_neither_torch_nor_ray() -> None:
    program = "import sys, pipeline.decode_worker; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
