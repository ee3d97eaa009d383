"""The SEED tokenizer: pictures to codes, codes to the embedding that pictures are generated from.

    uint8 picture -> vit -> ln_vision -> causal Q-Former -> encode_task_layer -> nearest entries: 32 codes
    codes -> codebook entries -> decode_task_layer -> generation head -> generation embedding

``SeedModel`` is the network (trainable), ``SeedTokenizer`` the network ready for use: one precision, one
device and one fixed batch shape, so that a code never depends on what else was in its batch.

Dimensions: B images, N codes per image (32), C code width, F width of the generation embedding.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from schemas.fingerprint import Fingerprint
from tokenizer.attention import cast_linears
from tokenizer.causal_qformer import CausalQFormer
from tokenizer.codebook import Codebook
from tokenizer.config import SeedTokenizerConfig
from tokenizer.generation_head import GenerationHead, ReconstructionHead
from tokenizer.packed_linear import can_pack, pack_linears
from tokenizer.vit import VisionTransformer

ENCODER_VERSION = 1
"""Raised whenever a change of this package may change a code; part of the fingerprint."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Compute dtype of the linear layers of image encoder and Q-Former; residual streams and search stay fp32."""

LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes; glibc maps every block above it anew (DEFAULT_MMAP_THRESHOLD_MAX in mallopt(3), 64 bits)."""


class SeedModel(nn.Module):
    """All parts of one tokenizer; uninitialised until loaded (``checkpoint``) or drawn (``untrained``)."""

    def __init__(self, config: SeedTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width, code_width = config.bert_hidden, config.codebook_embed_dim
        self.vit = VisionTransformer(config)
        self.ln_vision = nn.LayerNorm(config.vit_width, eps=config.ln_vision_eps)
        self.qformer = CausalQFormer(
            num_queries=config.num_query_token,
            width=width,
            num_layers=config.bert_layers,
            num_heads=config.bert_heads,
            mlp_hidden=config.bert_intermediate,
            eps=config.bert_ln_eps,
            image_width=config.vit_width,
            cross_layers=config.cross_layers,
            is_causal=config.causal,
        )
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width)
        )
        self.codebook = Codebook(config.n_embed, code_width)
        self.decode_task_layer = nn.Sequential(
            nn.Linear(code_width, code_width), nn.Tanh(), nn.Linear(code_width, width)
        )
        self.reconstruction_head = ReconstructionHead(config)
        self.generation_head = GenerationHead(config)

    def encode_features(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, N, C) fp32, the vectors before quantisation."""
        z_BNC: Tensor = self.encode_task_layer(self.qformer(self.ln_vision(self.vit(images_B))))
        return z_BNC

    def encode(self, images_B: Tensor) -> Tensor:
        """(B, img_size, img_size, 3) uint8 RGB -> (B, N) int64 codes."""
        return self.codebook.nearest(self.encode_features(images_B))

    def causal_embeddings(self, codes_BN: Tensor) -> Tensor:
        """(B, N) integer codes -> (B, N, W) fp32: the Q-Former's outputs, W wide, as codes hold them."""
        out: Tensor = self.reconstruction_head(self.decode_task_layer(self.codebook.vectors(codes_BN)))
        return out

    def generation_embedding(self, codes_BN: Tensor) -> Tensor:
        """(B, N) integer codes -> (B, F) fp32."""
        out: Tensor = self.generation_head(self.decode_task_layer(self.codebook.vectors(codes_BN)))
        return out


def codes_fingerprint(
    weights_sha256: str,
    config: SeedTokenizerConfig,
    precision: str,
    preprocessing: Mapping[str, str | int],
    *,
    compiled: bool = False,
) -> Fingerprint:
    """What decides codes, by name.

    Device and batch size are no part of it. Neighbours in a batch never matter, for batches have one shape.
    On a CPU the batch size does not either: z, the vectors before quantisation, was bit-equal at 1 to 64
    images in every precision. But kernels of another device (CPU, GPU), of another torch, on a GPU perhaps
    of another batch size, add up in another order. That moves z by up to about 1e-5 in fp32, more in bf16 and
    fp16, and so, rarely, a code whose two nearest entries are equally far to within that.
    """
    return Fingerprint(
        {
            "weights": weights_sha256,
            "architecture": config.architecture(),
            "precision": precision + " compiled" * compiled,
            "encoder_version": ENCODER_VERSION,
            "preprocessing": dict(preprocessing),
        }
    )


class SeedTokenizer:
    """A loaded tokenizer: ``encode`` pictures, or ``launch`` batches where transfers are overlapped."""

    def __init__(
        self,
        model: SeedModel,
        *,
        weights_sha256: str,
        precision: str = "fp32",
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        """Take over ``model``: it is converted in place and cannot be trained or saved any more.

        Args:
            model: fp32 weights.
            weights_sha256: what ``checkpoint.weights_sha256`` says of them.
            precision: one of ``PRECISIONS``.
            batch_size: images per call of the network, always; smaller inputs are padded.
            device: where it runs.
            compiled: by ``torch.compile``, at the first batch, which takes minutes then.

        Raises:
            ValueError: unknown precision, batch size below 1, a device that is not there, or one that is
                set to round fp32 products (the search must be exact).
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.config = model.config
        self.weights_sha256 = weights_sha256
        self.precision = precision
        self.is_compiled = compiled
        self.batch_size = batch_size
        self._slice_size = images_per_slice(model.config, PRECISIONS[precision], batch_size)
        self.device = _usable_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.model.vit.patch_embed.freeze(PRECISIONS[precision])
        if precision != "fp32":
            cast_linears(self.model.vit, PRECISIONS[precision])
            cast_linears(self.model.qformer, PRECISIONS[precision])
        elif self.device.type == "cpu" and can_pack() and not compiled:
            for part in (self.model.vit, self.model.qformer, self.model.encode_task_layer):
                pack_linears(part)
        self._encode_features = self.model.encode_features
        if compiled:
            self._encode_features = torch.compile(self._encode_features, dynamic=False)
        elif self.device.type == "cpu":
            self._encode_features = self._encode_features_in_slices

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture: (img_size, img_size, 3)."""
        return (self.config.img_size, self.config.img_size, 3)

    @property
    def codebook_hex(self) -> str:
        """What its codes mean, whatever the precision and the pixels (``Fingerprint.codebook_hex``)."""
        return self.fingerprint({}).codebook_hex

    def fingerprint(self, preprocessing: Mapping[str, str | int]) -> Fingerprint:
        """Identity of the codes that this tokenizer makes of pictures that were prepared in the given way."""
        return codes_fingerprint(
            self.weights_sha256, self.config, self.precision, preprocessing, compiled=self.is_compiled
        )

    @torch.inference_mode()
    def launch(self, images_B: Tensor) -> Tensor:
        """Start encoding one full batch that is already on the device; nothing waits for the result.

        Args:
            images_B: (batch_size, img_size, img_size, 3) uint8 on ``device``.

        Returns:
            (batch_size, N) int32 codes on ``device``; copying them to the host waits for them.
        """
        assert images_B.shape == (self.batch_size, *self.image_shape)
        return self.model.codebook.nearest(self._encode_features(images_B)).to(torch.int32)

    def encode(self, images: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.uint16]:
        """Codes of any number of pictures.

        Args:
            images: (B, img_size, img_size, 3) uint8 RGB, already resized (``tokenizer.preprocess``).

        Returns:
            (B, N) uint16 codes. On one device the codes of a picture depend on nothing but its pixels.

        Raises:
            ValueError: another shape or dtype.
        """
        return self._in_batches(self.launch, images).to("cpu", torch.uint16).numpy()

    def encode_features(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Vectors before quantisation: (B, img_size, img_size, 3) uint8 -> (B, N, C) fp32 on ``device``."""
        return self._in_batches(torch.inference_mode()(self._encode_features), images)

    @torch.inference_mode()
    def generation_embedding(self, codes: npt.NDArray[np.integer] | Tensor) -> Tensor:
        """What pictures are drawn from: (B, N) integer codes -> (B, F) fp32 on ``device``.

        Raises:
            ValueError: another shape, or a code outside the codebook.
        """
        return self.model.generation_embedding(self._checked(codes))

    @torch.inference_mode()
    def causal_embeddings(self, codes: npt.NDArray[np.integer] | Tensor) -> Tensor:
        """The Q-Former's outputs as codes hold them: (B, N) integer codes -> (B, N, W) fp32 on ``device``.

        Raises:
            ValueError: another shape, or a code outside the codebook.
        """
        return self.model.causal_embeddings(self._checked(codes))

    def _encode_features_in_slices(self, images_B: Tensor) -> Tensor:
        """``model.encode_features``, a few images at a time: the same bits, and no tensor that glibc would
        map anew, for the kernel to fill with zeros page by page, at each of its uses.
        """
        return torch.cat([self.model.encode_features(images) for images in images_B.split(self._slice_size)])

    def _checked(self, codes: npt.NDArray[np.integer] | Tensor) -> Tensor:
        """Codes as (B, N) int64 on ``device``."""
        codes_BN = torch.as_tensor(np.asarray(codes).astype(np.int64))
        if codes_BN.ndim != 2 or codes_BN.shape[1] != self.config.num_query_token:
            raise ValueError(
                f"codes have shape {tuple(codes_BN.shape)}, expected (B, {self.config.num_query_token})"
            )
        if codes_BN.numel() and not 0 <= int(codes_BN.min()) <= int(codes_BN.max()) < self.config.n_embed:
            raise ValueError(
                f"codes span {int(codes_BN.min())}..{int(codes_BN.max())}, but the codebook has "
                f"{self.config.n_embed} entries; are they of another tokenizer, or LLM token ids?"
            )
        return codes_BN.to(self.device)

    def _in_batches(self, run: Callable[[Tensor], Tensor], images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Results of ``run`` over full batches, padding cut off."""
        if isinstance(images, np.ndarray) and not images.flags.writeable:
            images = images.copy()  # torch wraps writable memory only; shared memory and Arrow are not
        images_B, side = torch.as_tensor(images), self.config.img_size
        if images_B.dtype != torch.uint8 or images_B.shape[1:] != self.image_shape:
            raise ValueError(
                f"images are {images_B.dtype} {tuple(images_B.shape)}, expected uint8 "
                f"(B, {side}, {side}, 3): resize them with tokenizer.preprocess first"
            )
        results = [run(batch.to(self.device)) for batch in self._full_batches(images_B)]
        return torch.cat(results)[: len(images_B)]

    def _full_batches(self, images_B: Tensor) -> Iterator[Tensor]:
        """Slices of exactly ``batch_size`` images, at least one; the last is filled up with black ones."""
        for start in range(0, max(1, len(images_B)), self.batch_size):
            batch = images_B[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            yield torch.cat([batch, batch.new_zeros(missing, *self.image_shape)]) if missing else batch


def images_per_slice(config: SeedTokenizerConfig, dtype: torch.dtype, batch_size: int) -> int:
    """The most images, a divisor of ``batch_size``, whose widest activation malloc does not map by itself."""
    widest = max(config.vit_mlp_hidden, 3 * config.vit_width)
    most = LARGEST_MMAP_THRESHOLD // (config.vit_num_tokens * widest * dtype.itemsize)
    return max(size for size in range(1, batch_size + 1) if batch_size % size == 0 and size <= max(1, most))


def _usable_device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(name)!r}: this machine, or this torch, has no CUDA; use cpu")
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        raise ValueError("the nearest-code search needs torch.set_float32_matmul_precision('highest')")
    return device
