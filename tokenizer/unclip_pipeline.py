"""diffusers' unCLIP pipeline with what SEED needs on top: an image embedding to steer away from. Imports
diffusers.

The release patched a copy of the pipeline; here one method is extended, and everything else is diffusers'
own.
"""

from typing import Any

import torch
from diffusers import StableUnCLIPImg2ImgPipeline
from torch import Tensor


class SeedUnclipPipeline(StableUnCLIPImg2ImgPipeline):  # type: ignore[misc]
    """Stable unCLIP whose unconditional half of the guidance may hold negative embeddings instead of
    zeros."""

    negative_image_embeds: Tensor | None = None
    """(B, F), for the next call only; set by ``draw``."""

    def _encode_image(self, *args: Any, **options: Any) -> Tensor:
        """Embeddings for the denoiser: [negative, positive] under guidance. See diffusers for the
        arguments."""
        embeds: Tensor = super()._encode_image(*args, **options)
        if self.negative_image_embeds is None or not options["do_classifier_free_guidance"]:
            return embeds
        negative = self.noise_image_embeddings(
            image_embeds=self.negative_image_embeds,
            noise_level=options["noise_level"],
            generator=options["generator"],
        )
        return torch.cat([negative.to(embeds), embeds.chunk(2)[1]])

    @torch.inference_mode()
    def draw(
        self,
        embedding_BF: Tensor,
        negative_BF: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 10.0,
        noise_level: int = 0,
    ) -> Tensor:
        """Pictures of generation embeddings.

        Latents and noise of picture i come from CPU generators of ``seed + i``: a picture does not depend on
        the batch it is drawn in, and is the same on the next run of the same software and device.

        Args:
            embedding_BF: (B, F), F as the pipeline's image encoder has it (1024 for the ViT-H variant).
            negative_BF: (B, F), what the guidance steers away from; zeros if None, as diffusers has it.
            seed: of latents and noise.
            steps: of the denoiser; the release uses 20.
            guidance: scale of classifier-free guidance; the release uses 10.
            noise_level: 0 in the release.

        Returns:
            (B, H, W, 3) uint8 RGB on the CPU.

        Raises:
            ValueError: the embedding has another width than the pipeline's.
        """
        width = int(self.image_encoder.config.projection_dim)
        for embedding in (embedding_BF, negative_BF):
            if embedding is not None and embedding.shape[1] != width:
                raise ValueError(
                    f"generation embedding is {embedding.shape[1]} wide, the diffusion model takes {width}: "
                    "SEED-2 needs the unCLIP variant with CLIP ViT-H/14 (stable-diffusion-2-1-unclip, 1024)"
                )
        generators = [torch.Generator().manual_seed(seed + index) for index in range(len(embedding_BF))]
        side = int(self.unet.config.sample_size)
        shape = (1, int(self.unet.config.in_channels), side, side)
        latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        self.scheduler.set_timesteps(steps, device=self.device)
        latents = latents.to(self.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        self.negative_image_embeds = (
            None if negative_BF is None else negative_BF.to(self.device, self.unet.dtype)
        )
        try:
            pictures = self(
                prompt=[""] * len(embedding_BF),
                image_embeds=embedding_BF.to(self.device, self.unet.dtype),
                latents=latents,
                generator=generators,
                num_inference_steps=steps,
                guidance_scale=guidance,
                noise_level=noise_level,
                output_type="pt",
            ).images
        finally:
            self.negative_image_embeds = None
        pixels: Tensor = pictures.float() * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def load_unclip(source: str, device: torch.device | str = "cpu") -> SeedUnclipPipeline:
    """The pipeline from a local path or hub id; fp16 on a GPU, fp32 on the CPU.

    Raises:
        FileNotFoundError: not there, or not reached.
    """
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    try:
        pipeline = SeedUnclipPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"diffusion model {source!r}: not found or not complete ({str(error).splitlines()[0]}); give a "
            "local folder of stable-diffusion-2-1-unclip or its hub id"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    placed: SeedUnclipPipeline = pipeline.to(device)
    return placed
