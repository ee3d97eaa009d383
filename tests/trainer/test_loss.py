"""Chunked cross-entropy equals the plain one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from trainer.loss import IGNORED_LABEL, cross_entropy_by_id


@pytest.mark.parametrize(
    ("dtype", "atol", "gradient_rtol"), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.07, 1e-2)]
)
@pytest.mark.parametrize("chunk_ids", [7, 64, 1000])
def test_equals_float64_cross_entropy(
    dtype: torch.dtype, atol: float, gradient_rtol: float, chunk_ids: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 100, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(999, 16, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, 999, (2, 100), generator=generator)
    labels[0, ::3] = IGNORED_LABEL
    losses = cross_entropy_by_id(hidden, weight, labels, chunk_ids)
    losses.sum().backward()

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = (exact[0] @ exact[1].T).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="none").view(2, 100)
    expected.sum().backward()

    assert losses.dtype == torch.float32
    assert not losses[labels == IGNORED_LABEL].any()
    torch.testing.assert_close(losses.double(), expected, atol=atol, rtol=0)
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < gradient_rtol


def test_bf16_total_is_not_accumulated_in_bf16() -> None:
    """2,048 losses of about 10: a bf16 running sum would stop growing near 4,096."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2048, 32, generator=generator).bfloat16()
    weight = torch.randn(4096, 32, generator=generator).bfloat16()
    labels = torch.randint(0, 4096, (1, 2048), generator=generator)
    total = cross_entropy_by_id(hidden, weight, labels).sum()
    exact = F.cross_entropy((hidden[0].double() @ weight.double().T), labels[0], reduction="sum")
    assert float(total) == pytest.approx(float(exact), rel=1e-3)
