"""Attention stays within documents, and its backends agree."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.tiny import CONFIG, bounds, positions, tiny_model
from trainer.attention import attention


def masked_softmax_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The definition, in float64, with an explicit mask."""
    num_ids, heads, width = q.shape
    document = torch.bucketize(torch.arange(num_ids), cu_seqlens[1:], right=True)
    is_visible = (document[:, None] == document[None]) & torch.ones(num_ids, num_ids).tril().bool()
    k, v = (x.double().repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhk,thk->hqt", q.double(), k) / math.sqrt(width)
    weights = scores.masked_fill(~is_visible, -math.inf).softmax(-1)
    return torch.einsum("hqt,thk->qhk", weights, v)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any), seed=st.integers(0, 2**31))
def test_reference_backend_equals_the_definition(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_ids = sum(lengths)
    q = torch.randn(num_ids, 4, 8, generator=generator)
    k, v = torch.randn(2, num_ids, 2, 8, generator=generator)
    cu_seqlens = bounds(lengths)[0]
    expected = masked_softmax_attention(q, k, v, cu_seqlens)
    actual = attention(q, k, v, cu_seqlens, num_ids, backend="reference")
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flex_backend_equals_the_reference_forward() -> None:
    lengths = [5, 40, 1, 0, 82]
    q, k, v = torch.randn(3, 128, 2, 16, generator=torch.Generator().manual_seed(0))
    expected, actual = (attention(q, k, v, bounds(lengths)[0], 128, backend=b) for b in ("reference", "flex"))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("backend", "dtype", "atol"), [("varlen", torch.bfloat16, 2e-2), ("flex", torch.float32, 1e-4)]
)
def test_cuda_backends_equal_the_reference_with_gradients(
    backend: str, dtype: torch.dtype, atol: float
) -> None:
    lengths = [5, 400, 1, 0, 618]
    leaves = [torch.randn(1024, heads, 64, device="cuda", dtype=dtype) for heads in (8, 2, 2)]
    results = []
    for name in ("reference", backend):
        copies = [leaf.clone().requires_grad_() for leaf in leaves]
        output = attention(*copies, bounds(lengths)[0].cuda(), 1024, backend=name)
        output.square().sum().backward()
        results.append([output, *(copy.grad for copy in copies)])
    for expected, actual in zip(*results, strict=True):
        assert actual is not None
        torch.testing.assert_close(actual, expected, atol=atol, rtol=atol)


def test_no_document_sees_another() -> None:
    """Change every id of the first document: the logits of the second move by exactly nothing."""
    lengths = [30, 25, 9]
    model = tiny_model().eval()
    ids = torch.randint(0, 300, (1, 64), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, :30] = (ids[:, :30] + 1 + torch.arange(30)) % 300
    with torch.no_grad():
        before, after = (model(x, positions(lengths), bounds(lengths)) for x in (ids, changed))
    assert torch.equal(before[:, 30:], after[:, 30:])
    assert not torch.equal(before[:, :30], after[:, :30])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_packed_equals_each_document_alone(lengths: list[int]) -> None:
    model = tiny_model().eval()
    ids = torch.randint(0, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        packed = model(ids, positions(lengths), bounds(lengths))
        alone = [
            model(part, positions([part.shape[1]]), bounds([part.shape[1]]))
            for part in ids.split(lengths, dim=1)
        ]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


def test_rows_of_a_batch_are_independent() -> None:
    """Bounds given per row, short rows filled with empty documents, act as each row alone."""
    model = tiny_model().eval()
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(3))
    cu_seqlens = torch.tensor([[0, 7, 15, 20], [0, 20, 20, 20]], dtype=torch.int32)
    place = torch.cat((positions([7, 8, 5]), positions([20])))
    with torch.no_grad():
        both = model(ids, place, cu_seqlens)
        for row in range(2):
            alone = model(ids[row : row + 1], place[row : row + 1], cu_seqlens[row : row + 1])
            torch.testing.assert_close(both[row : row + 1], alone, atol=1e-6, rtol=0)
    assert both.shape == (2, 20, CONFIG.vocab_size)
