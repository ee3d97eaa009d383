"""Codes to pictures: codes -> generation embedding (the tokenizer) -> picture (unCLIP, or the small pixel
decoder).

The command is ``python -m tokenizer decode CODES.json``; see ``add_decode_command``.

Dimensions: B pictures, N codes each, F width of the generation embedding.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tokenizer.checkpoint import load_tokenizer
from tokenizer.hub import locate
from tokenizer.pixel_decoder import load_pixel_decoder
from tokenizer.seed import SeedTokenizer

CodesBN = npt.NDArray[np.integer[Any]]
"""(B, N) codes of B pictures."""


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How unCLIP draws; defaults are the release's. The pixel decoder has no choices."""

    seed: int = 0
    steps: int = 20
    """Of the denoiser."""
    guidance: float = 10.0
    """Scale of classifier-free guidance."""
    noise_level: int = 0
    """How much noise is put on the embedding before it is drawn."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.noise_level < 0 or self.guidance < 0:
            raise ValueError(
                f"steps must be at least 1, guidance and noise level not negative: got {self.steps}, "
                f"{self.guidance}, {self.noise_level}"
            )


class Detokenizer:
    """Draws codes of one tokenizer."""

    def __init__(
        self, tokenizer: SeedTokenizer, draw: Callable[[Tensor, Tensor | None, DrawConfig], Tensor]
    ) -> None:
        """``draw`` makes (B, H, W, 3) uint8 of (B, F) embeddings, negative ones or None, and the settings."""
        self.tokenizer = tokenizer
        self._draw = draw

    def draw(
        self, codes: CodesBN, negative_codes: CodesBN | None = None, config: DrawConfig | None = None
    ) -> npt.NDArray[np.uint8]:
        """Pictures of codes.

        Args:
            codes: (B, N).
            negative_codes: (B, N) or (1, N), codes of what the pictures should be unlike (unCLIP only).
            config: how unCLIP draws.

        Returns:
            (B, H, W, 3) uint8 RGB.

        Raises:
            ValueError: codes that this tokenizer does not have, or another shape.
        """
        embedding = self.tokenizer.generation_embedding(codes)
        negative = None
        if negative_codes is not None:
            negative = self.tokenizer.generation_embedding(negative_codes).expand(len(embedding), -1)
        return self._draw(embedding, negative, config or DrawConfig()).cpu().numpy()


def load_detokenizer(
    source: str = "sample", diffusion: str | None = None, device: torch.device | str = "cpu"
) -> Detokenizer:
    """A tokenizer and what draws its embeddings.

    Args:
        source: tokenizer (preset, directory, hub id).
        diffusion: local path or hub id of an unCLIP pipeline; None for the pixel decoder beside the
            tokenizer.
        device: where both run.

    Raises:
        FileNotFoundError, ValueError: something is missing or does not fit; the message says what to do.
        ModuleNotFoundError: ``diffusion`` is given, but diffusers is not installed.
    """
    tokenizer = load_tokenizer(source, device=device)
    if diffusion is not None:
        return Detokenizer(tokenizer, _unclip(diffusion, device))
    decoder = load_pixel_decoder(locate(source).weights.parent).to(device)
    if decoder.embedding_width != tokenizer.config.image_features_dim:
        raise ValueError(
            f"{source}: the pixel decoder takes embeddings {decoder.embedding_width} wide, the tokenizer "
            f"makes {tokenizer.config.image_features_dim}; train it with this tokenizer (--stage pixels)"
        )
    return Detokenizer(tokenizer, lambda embedding, negative, config: decoder.draw(embedding))


def _unclip(
    diffusion: str, device: torch.device | str
) -> Callable[[Tensor, Tensor | None, DrawConfig], Tensor]:
    try:
        from tokenizer.unclip_pipeline import load_unclip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: drawing with a diffusion model needs the extra: pip install 'seed-shards[decode]'"
        ) from error
    pipeline = load_unclip(diffusion, device)

    def draw(embedding: Tensor, negative: Tensor | None, config: DrawConfig) -> Tensor:
        return pipeline.draw(
            embedding, negative,
            seed=config.seed, steps=config.steps, guidance=config.guidance, noise_level=config.noise_level,
        )  # fmt: skip

    return draw


def read_codes(path: Path) -> CodesBN:
    """(B, N) codes of a JSON or JSON-lines file: lists of codes, or objects with an entry ``codes``, one or
    many.

    ``python -m tokenizer encode`` writes such lines, ``jobs/generate.py`` those with such objects among the
    texts of an entry ``answer``.

    Raises:
        ValueError: the file holds something else.
    """
    text = path.read_text(encoding="utf-8")
    try:
        rows = list(_code_rows(json.loads(text)))
    except json.JSONDecodeError:
        try:
            rows = [row for line in text.splitlines() if line.strip() for row in _code_rows(json.loads(line))]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: neither JSON nor JSON lines ({error})") from error
    if (
        not rows
        or len({len(row) for row in rows}) != 1
        or not all(type(code) is int for row in rows for code in row)
    ):
        raise ValueError(f"{path}: expected lists of codes of one length, or objects with an entry 'codes'")
    return np.array(rows, dtype=np.int64)


def _code_rows(content: Any) -> Iterator[list[Any]]:
    """Rows of codes in parsed JSON."""
    if isinstance(content, Mapping):
        content = content.get("codes", content.get("answer"))
    if isinstance(content, list) and any(isinstance(item, list | Mapping) for item in content):
        for item in content:
            if not isinstance(item, str):
                yield from _code_rows(item)
    elif isinstance(content, list) and content:
        yield content


def tile(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3) pictures side by side in rows of at most eight, on white."""
    num, height, width, _ = pictures.shape
    columns = min(num, 8)
    rows = -(-num // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return sheet


def add_decode_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``decode CODES.json --output out.png``: for ``tokenizer.__main__``."""
    defaults = DrawConfig()
    parser = commands.add_parser("decode", help="draw pictures of codes")
    parser.add_argument("codes", type=Path, metavar="CODES.json")
    parser.add_argument("--tokenizer", default="sample", help="preset, directory or Hugging Face id")
    parser.add_argument(
        "--diffusion", help="unCLIP pipeline (path or hub id); without, the small pixel decoder"
    )
    parser.add_argument(
        "--negative", type=Path, metavar="CODES.json", help="codes to steer away from (unCLIP)"
    )
    parser.add_argument("--output", type=Path, required=True, help="picture to write; several are tiled")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--guidance", type=float, default=defaults.guidance)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(run=run_decode)


def run_decode(options: argparse.Namespace) -> int:
    """Draw, write, and say what was written; exit status 0."""
    if options.negative is not None and options.diffusion is None:
        raise ValueError("--negative needs --diffusion: the pixel decoder cannot steer away from anything")
    config = DrawConfig(seed=options.seed, steps=options.steps, guidance=options.guidance)
    codes = read_codes(options.codes)
    negative = read_codes(options.negative) if options.negative is not None else None
    detokenizer = load_detokenizer(options.tokenizer, options.diffusion, options.device)
    pictures = detokenizer.draw(codes, negative, config)
    Image.fromarray(tile(pictures)).save(options.output)
    drawn_by = options.diffusion or "the small pixel decoder (a rough impression, not unCLIP)"
    print(f"{options.output}: {len(pictures)} picture(s) drawn by {drawn_by}", file=sys.stderr)
    return 0
