"""A code depends on nothing but its picture: not on neighbours, position, padding or what came before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import read_golden
from tokenizer.checkpoint import load_tokenizer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.seed import LARGEST_MMAP_THRESHOLD, PRECISIONS, SeedTokenizer, images_per_slice

BATCH_SIZE = 5


def make_tokenizer(name: str) -> SeedTokenizer:
    return load_tokenizer(read_golden(name).directory, batch_size=BATCH_SIZE)


TOKENIZERS = {name: make_tokenizer(name) for name in ("tiny", "tiny512")}
PICTURES = read_golden("tiny").images


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, len(PICTURES) - 1), min_size=1, max_size=2 * BATCH_SIZE + 1))
def test_vectors_are_bit_identical_whatever_the_batch(name: str, order: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    alone = torch.cat([tokenizer.encode_features(picture[None]) for picture in PICTURES])
    assert torch.equal(tokenizer.encode_features(PICTURES[order]), alone[order])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_neighbours_of_any_content_change_nothing(seed: int) -> None:
    tokenizer = TOKENIZERS["tiny"]
    noise = np.random.default_rng(seed).integers(0, 256, (BATCH_SIZE, 224, 224, 3), dtype=np.uint8)
    position = seed % BATCH_SIZE
    noise[position] = PICTURES[0]
    assert torch.equal(tokenizer.encode_features(noise)[position], tokenizer.encode_features(PICTURES[:1])[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_batch_size_changes_no_bit_on_a_cpu(precision: str) -> None:
    """It is not in the fingerprint."""
    directory = read_golden("tiny512").directory
    vectors = [
        load_tokenizer(directory, precision=precision, batch_size=batch_size).encode_features(PICTURES)
        for batch_size in (1, 2, 7, 16)
    ]
    assert all(torch.equal(z, vectors[0]) for z in vectors)


@given(
    batch_size=st.integers(1, 256),
    heads=st.integers(1, 16),
    precision=st.sampled_from(sorted(PRECISIONS)),
)
def test_slices_on_a_cpu_fill_a_batch_and_fit_in_memory_that_is_used_again(
    batch_size: int, heads: int, precision: str
) -> None:
    config = SeedTokenizerConfig(vit_heads=heads, vit_width=88 * heads, vit_mlp_hidden=384 * heads)
    dtype = PRECISIONS[precision]
    images = images_per_slice(config, dtype, batch_size)
    hidden_bytes = config.vit_num_tokens * config.vit_mlp_hidden * dtype.itemsize
    assert batch_size % images == 0
    assert images == 1 or images * hidden_bytes <= LARGEST_MMAP_THRESHOLD
    larger = [n for n in range(images + 1, batch_size + 1) if batch_size % n == 0]
    assert all(n * hidden_bytes > LARGEST_MMAP_THRESHOLD for n in larger)


def test_slices_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TOKENIZERS["tiny"].encode_features(PICTURES)
    monkeypatch.setattr("tokenizer.seed.LARGEST_MMAP_THRESHOLD", 1)
    sliced = make_tokenizer("tiny")
    num_slices: list[int] = []
    encode = sliced.model.encode_features
    monkeypatch.setattr(
        sliced.model, "encode_features", lambda images: num_slices.append(len(images)) or encode(images)
    )
    assert torch.equal(sliced.encode_features(PICTURES), whole)
    assert set(num_slices) == {1}


def test_launch_gives_the_codes_of_encode() -> None:
    tokenizer = TOKENIZERS["tiny"]
    batch = torch.as_tensor(PICTURES[:BATCH_SIZE])
    np.testing.assert_array_equal(tokenizer.launch(batch).numpy(), tokenizer.encode(batch))


def test_no_pictures_give_no_codes() -> None:
    assert TOKENIZERS["tiny"].encode(PICTURES[:0]).shape == (0, 32)
    assert TOKENIZERS["tiny"].encode_features(PICTURES[:0]).shape == (0, 32, 32)


@pytest.mark.parametrize(
    "images", [PICTURES.astype(np.float32), PICTURES[:, :100], PICTURES[0], PICTURES.transpose(0, 3, 1, 2)]
)
def test_other_shapes_and_dtypes_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(B, 224, 224, 3\)"):
        TOKENIZERS["tiny"].encode(images)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_keeps_the_search_in_fp32_and_most_codes(precision: str) -> None:
    golden = read_golden("tiny")
    tokenizer = load_tokenizer(golden.directory, precision=precision, batch_size=3)
    z = tokenizer.encode_features(PICTURES)
    assert z.dtype == tokenizer.model.codebook.weight.dtype == torch.float32
    assert tokenizer.model.vit.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert (tokenizer.encode(PICTURES) == golden["codes"]).mean() > (0.8 if precision == "bf16" else 0.95)


def test_unknown_precision_and_batch_size_are_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        load_tokenizer(read_golden("tiny512").directory, precision="int8")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        load_tokenizer(read_golden("tiny512").directory, batch_size=0)


def test_compiling_is_part_of_the_fingerprint() -> None:
    directory = read_golden("tiny").directory
    plain, compiled = (
        load_tokenizer(directory, precision="bf16", compiled=is_compiled).fingerprint({})
        for is_compiled in (False, True)
    )
    (difference,) = plain.differences(compiled)
    assert "bf16 compiled" in difference
