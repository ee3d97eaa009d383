"""Packed linear layers: the same numbers as ``nn.Linear`` within fp32, and the same bits at every place of a
batch.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenizer.packed_linear import PackedLinear, can_pack

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no oneDNN")


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 300),
    out=st.integers(1, 300),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_packed_equals_fp64_within_fp32(tokens: int, width: int, out: int, has_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(width, out, bias=has_bias)
    x = torch.randn(3, tokens, width)
    with torch.inference_mode():
        packed = PackedLinear(linear)(x)
        exact = linear.double()(x.double())
    assert packed.dtype == torch.float32
    assert float((packed - exact).abs().max()) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 32, 257]),
    width=st.sampled_from([40, 48, 174, 704]),
    out=st.sampled_from([24, 64, 144, 2112]),
    num_images=st.integers(2, 6),
    num_threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**31),
)
@torch.inference_mode()
def test_rows_do_not_depend_on_their_place(
    tokens: int, width: int, out: int, num_images: int, num_threads: int, seed: int
) -> None:
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    packed = PackedLinear(nn.Linear(width, out))
    image = torch.randn(tokens, width)
    results = []
    for place in range(num_images):
        batch = torch.randn(num_images, tokens, width)
        batch[place] = image
        results.append(packed(batch)[place])
    assert all(torch.equal(results[0], result) for result in results)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([32, 257]),
    width=st.sampled_from([40, 174, 704, 1408]),
    out=st.sampled_from([24, 144, 279, 2112]),
    num_images=st.integers(2, 32),
    num_threads=st.integers(1, 4),
)
@torch.inference_mode()
def test_rows_do_not_depend_on_their_number_or_on_threads(
    tokens: int, width: int, out: int, num_images: int, num_threads: int
) -> None:
    """With MKL they would: it splits the sum over the width where rows are few for its threads."""
    packed = PackedLinear(nn.Linear(width, out))
    image = torch.randn(tokens, width)
    torch.set_num_threads(1)
    alone = packed(image[None])[0]
    torch.set_num_threads(num_threads)
    batch = torch.cat([image[None], torch.randn(num_images - 1, tokens, width)])
    assert torch.equal(packed(batch)[0], alone)
