"""Linear layers in oneDNN's blocked weight layout, for inference in fp32 on a CPU.

Eager PyTorch multiplies fp32 matrices with MKL, which on AMD CPUs leaves half of AVX-512 unused. oneDNN does
not, and takes weights that were laid out for it once. One thread of a Zen 5, (4112, 704) x (704, 3072): MKL
82 GFLOP/s, oneDNN 164; held to AVX2 (ONEDNN_MAX_CPU_ISA=AVX2) 84 and 95. On an Intel CPU MKL is as fast or a
little faster, but there its bits change with the number of rows and of threads. These do not: a row gets the
same bits wherever it stands, in a batch of any size. The operators are the ones that PyTorch's own compiler
emits for frozen CPU models.
"""

import torch
from torch import Tensor, nn


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN and the operators."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedLinear(nn.Module):
    """A frozen fp32 ``nn.Linear``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().contiguous(), None
        )
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) fp32 -> (..., out) fp32."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack_linears(module: nn.Module) -> None:
    """Replace all linear layers under ``module``, for good: it cannot be trained or saved any more."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)
