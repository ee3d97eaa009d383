"""A whole unCLIP pipeline of toy size with random weights, as diffusers saves it. Imports diffusers."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

TEXT_WIDTH = 8


def save_tiny_unclip(directory: Path, embedding_width: int) -> None:
    """Write a pipeline that takes embeddings of this width and draws 16x16 pictures."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D",
        "CrossAttnUpBlock2D"), attention_head_dim=4, cross_attention_dim=TEXT_WIDTH, norm_num_groups=4,
        class_embed_type="projection", projection_class_embeddings_input_dim=2 * embedding_width,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=embedding_width,
    )  # fmt: skip
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size=16, crop_size=16),
        image_encoder=CLIPVisionModelWithProjection(vision),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_width),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=4),
        text_encoder=CLIPTextModel(text),
        unet=unet,
        scheduler=DDIMScheduler(),
        vae=vae,
    ).save_pretrained(directory)
