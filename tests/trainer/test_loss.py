"""Chunked cross-entropy equals the plain one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from schemas.packed_shard import IGNORED_LABEL
from tests.trainer.runs import run_in_processes
from trainer.loss import chunk_length, cross_entropy_by_id


@pytest.mark.parametrize(
    ("dtype", "atol", "gradient_rtol"), [(torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.07, 1e-2)]
)
@pytest.mark.parametrize(("chunk_ids", "num_ids"), [(7, None), (64, None), (1000, None), (64, 990)])
def test_equals_float64_cross_entropy(
    dtype: torch.dtype, atol: float, gradient_rtol: float, chunk_ids: int, num_ids: int | None
) -> None:
    """``num_ids``: the rows of the head behind them are padding."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 100, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(999, 16, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, 999, (2, 100), generator=generator) % (num_ids or 999)
    labels[0, ::3] = IGNORED_LABEL
    losses = cross_entropy_by_id(hidden, weight, labels, chunk_ids, num_ids)
    losses.sum().backward()

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = (exact[0] @ exact[1][:num_ids].T).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="none").view(2, 100)
    expected.sum().backward()

    assert losses.dtype == torch.float32
    assert not losses[labels == IGNORED_LABEL].any()
    torch.testing.assert_close(losses.double(), expected, atol=atol, rtol=0)
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < gradient_rtol
    assert num_ids is None or not weight.grad[num_ids:].any()


def test_bf16_total_is_not_accumulated_in_bf16() -> None:
    """2,048 losses of about 10: a bf16 running sum would stop growing near 4,096."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2048, 32, generator=generator).bfloat16()
    weight = torch.randn(4096, 32, generator=generator).bfloat16()
    labels = torch.randint(0, 4096, (1, 2048), generator=generator)
    total = cross_entropy_by_id(hidden, weight, labels).sum()
    exact = F.cross_entropy((hidden[0].double() @ weight.double().T), labels[0], reduction="sum")
    assert float(total) == pytest.approx(float(exact), rel=1e-3)


def test_only_a_sum_of_all_losses_has_gradients() -> None:
    hidden = torch.randn(1, 8, 4, requires_grad=True)
    losses = cross_entropy_by_id(hidden, torch.randn(16, 4), torch.arange(8)[None])
    with pytest.raises(ValueError, match="one weight for all"):
        (losses * torch.arange(8.0)).sum().backward()


def test_gradients_are_right_when_asked_twice() -> None:
    """As zero-bubble schedules do: for the hidden states first, for the head later."""
    hidden, weight = torch.randn(1, 20, 4, requires_grad=True), torch.randn(19, 4, requires_grad=True)
    labels = torch.randint(0, 16, (1, 20))
    total = cross_entropy_by_id(hidden, weight, labels, num_ids=16).sum() / 20
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    first = [gradient.clone() for gradient in first]
    expected = torch.autograd.grad(F.cross_entropy((hidden @ weight[:16].T)[0], labels[0]), (hidden, weight))
    for gradients in (first, torch.autograd.grad(total, (hidden, weight))):
        torch.testing.assert_close(gradients[0], expected[0])
        torch.testing.assert_close(gradients[1], expected[1])


def test_no_gradients_are_made_where_none_are_wanted() -> None:
    hidden, weight = torch.randn(1, 20, 4, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    with torch.no_grad():
        losses = cross_entropy_by_id(hidden, weight, torch.randint(0, 16, (1, 20)))
    assert losses.grad_fn is None


def test_chunks_are_measured_in_bytes() -> None:
    assert [chunk_length(40_320, device) for device in ("cpu", "cuda")] == [104, 1664]
    assert chunk_length(10**9, "cpu") == 8


def sharded_errors(num_ids: int) -> list[float]:
    """Of loss and gradients of a head sharded over two ranks in bf16, 256 chunks, against float64.

    Rows from ``num_ids`` on, of 64, are padding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 1024, 16), (64, 16))]
    labels = torch.randint(0, num_ids, (2, 1024), generator=generator)
    labels[0, ::3] = IGNORED_LABEL
    mesh = init_device_mesh("cpu", (2,))
    leaves = [
        distribute_tensor(tensor, mesh, [placement]).requires_grad_()
        for tensor, placement in zip(plain, (Replicate(), Shard(0)), strict=True)
    ]
    losses = cross_entropy_by_id(*leaves, labels, 8, num_ids)
    losses.sum().backward()
    exact = [tensor.double().requires_grad_() for tensor in plain]
    logits = (exact[0] @ exact[1][:num_ids].T).flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="sum")
    expected.backward()
    errors = [float((losses.detach().double().sum() - expected.detach()).abs() / expected.detach())]
    for ours, theirs in zip(leaves, exact, strict=True):
        gradient = ours.grad.full_tensor().double()
        errors.append(float((gradient - theirs.grad).norm() / theirs.grad.norm()))
    return errors


@pytest.mark.parametrize("num_ids", [64, 50, 30])
def test_a_sharded_head_sums_its_gradient_in_fp32(num_ids: int) -> None:
    """A sum of 256 chunks in bf16 would be off by more than one part in a hundred."""
    for loss_error, hidden_error, head_error in run_in_processes(sharded_errors, 2, num_ids):
        assert loss_error < 1e-3
        assert hidden_error < 1e-2
        assert head_error < 4e-3
