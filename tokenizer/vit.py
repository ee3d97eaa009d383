"""The image encoder: EVA ViT-g/14 of BLIP-2, without final norm, head or pooling.

Pictures enter as uint8: the normalisation is folded into the patch projection, which is one matrix product.
Pixels minus 128 are integers that fp32, bf16 and fp16 all hold exactly, so a low precision rounds only the
weights here.

Dimensions: B images, P patch side, G patches per side, T tokens (1 + G*G), D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.attention import PreNormBlock
from tokenizer.config import SeedTokenizerConfig

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's RGB statistics of pixels in 0..1, those of the released image processor."""
PIXEL_CENTRE = 128


class PatchEmbedding(nn.Module):
    """Normalisation and patch convolution (stride = kernel = P) of uint8 pictures as one product.

    With x = (pixel/255 - mean)/std, the convolution W x + b equals W' (pixel - 128) + b', where
    W' = W/(255 std) and b' = b + sum W (128/255 - mean)/std.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(width, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(width))
        self.folded_weight: Tensor | None
        self.folded_bias: Tensor | None
        self.register_buffer("folded_weight", None, persistent=False)
        self.register_buffer("folded_bias", None, persistent=False)

    def freeze(self, dtype: torch.dtype) -> None:
        """Fold once, for a model whose weights will not change any more."""
        self.folded_weight, self.folded_bias = self.fold(dtype)

    def fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(D, P*P*3) weight for channel-last patches and (D,) bias, with the normalisation inside."""
        mean = self.weight.new_tensor(PIXEL_MEAN).view(1, 3, 1, 1)
        std = self.weight.new_tensor(PIXEL_STD).view(1, 3, 1, 1)
        weight = (self.weight / (255 * std)).permute(0, 2, 3, 1).flatten(1)
        bias = self.bias + (self.weight * ((PIXEL_CENTRE / 255 - mean) / std)).sum((1, 2, 3))
        return weight.to(dtype), bias.to(dtype)

    def forward(self, images_BYXC: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, G*P, G*P, 3) uint8 -> (B, G*G, D) in ``dtype``, patches row by row."""
        side = self.patch_size
        grid = len(images_BYXC), images_BYXC.shape[1] // side, side, images_BYXC.shape[2] // side, side, 3
        patches = images_BYXC.reshape(grid).transpose(2, 3).flatten(3).flatten(1, 2)
        weight, bias = self.folded_weight, self.folded_bias
        if weight is None or bias is None:
            weight, bias = self.fold(dtype)
        return F.linear(patches.to(dtype).sub_(PIXEL_CENTRE), weight, bias)


class VisionTransformer(nn.Module):
    """Pre-norm transformer over class token and patches; the result is its bare residual stream."""

    def __init__(self, config: SeedTokenizerConfig) -> None:
        super().__init__()
        width = config.vit_width
        self.patch_embed = PatchEmbedding(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.vit_num_tokens, width))
        self.blocks = nn.ModuleList(
            PreNormBlock(width, config.vit_heads, config.vit_mlp_hidden, config.vit_ln_eps)
            for _ in range(config.vit_depth)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: that of the linear layers."""
        block = self.blocks[0]
        assert isinstance(block, PreNormBlock)
        return block.attn.qkv.weight.dtype

    def forward(self, images_BYXC: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, T, D) fp32, class token first."""
        patches_BTD = self.patch_embed(images_BYXC, self.dtype)
        cls_B1D = self.cls_token.expand(len(images_BYXC), -1, -1)
        x_BTD = torch.cat([cls_B1D, patches_BTD.to(cls_B1D.dtype)], dim=1) + self.pos_embed
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD
