"""A small picture straight from a generation embedding: the embedded default where no diffusion model is at
hand.

A projection to 4x4 cells and convolutions that double the side four times; trained with the small tokenizer
on the same pictures (``jobs/train_tokenizer.py --stage pixels``). It shows what codes hold at 64x64; it
invents nothing, so what codes leave open comes out blurred.

Dimensions: B pictures, F width of the generation embedding, S side of the picture (64).
"""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.weights_file import write_tensors

FILE_NAME = "pixel_decoder.safetensors"
CELLS = 4
WIDTHS = (96, 64, 48, 32, 24)
"""Channels at sides 4, 8, 16, 32, 64."""
SIDE = CELLS * 2 ** (len(WIDTHS) - 1)
GROUPS = 8


class UpBlock(nn.Module):
    """Double the side: nearest neighbour, 3x3 convolution, norm over groups, GELU, and a residual 3x3
    convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, width_out)
        self.refine = nn.Conv2d(width_out, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, s, s) -> (B, width_out, 2s, 2s)."""
        x = F.gelu(self.norm(self.expand(F.interpolate(x, scale_factor=2.0, mode="nearest"))))
        out: Tensor = x + F.gelu(self.refine(x))
        return out


class PixelDecoder(nn.Module):
    """Generation embedding to picture."""

    def __init__(self, embedding_width: int) -> None:
        super().__init__()
        self.embedding_width = embedding_width
        self.project = nn.Linear(embedding_width, WIDTHS[0] * CELLS**2)
        self.blocks = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise(WIDTHS)))
        self.to_rgb = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)

    def forward(self, embedding_BF: Tensor) -> Tensor:
        """(B, F) fp32 -> (B, 3, S, S) fp32, about -1..1."""
        x = self.project(embedding_BF).unflatten(1, (WIDTHS[0], CELLS, CELLS))
        out: Tensor = self.to_rgb(self.blocks(F.gelu(x)))
        return out

    @torch.inference_mode()
    def draw(self, embedding_BF: Tensor) -> Tensor:
        """(B, F) fp32 -> (B, S, S, 3) uint8 RGB."""
        pixels: Tensor = (self(embedding_BF) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def save_pixel_decoder(decoder: PixelDecoder, directory: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write ``pixel_decoder.safetensors`` into a tokenizer's directory."""
    tensors = {name: tensor.to(dtype) for name, tensor in decoder.state_dict().items()}
    write_tensors(tensors, directory / FILE_NAME)


def load_pixel_decoder(path: Path) -> PixelDecoder:
    """From a file, or from a tokenizer's directory; fp32, in eval mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged or holds something else.
    """
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no pixel decoder; train one (--stage pixels) or give a diffusion model"
        )
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        decoder = PixelDecoder(tensors["project.weight"].shape[1])
        decoder.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a pixel decoder of this version ({error})") from error
    return decoder.eval().requires_grad_(False)
