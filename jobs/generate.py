#!/usr/bin/env python3
"""Continue prompts of text and images with a trained model.

::

    python jobs/generate.py --model out/run/model --text-tokenizer samples/text_tokenizer --prompt "A dog"
    python jobs/generate.py ... --prompt "<image> shows" --images dog.jpg
    python jobs/generate.py ... --prompt "A red bicycle" --force-image
    python jobs/generate.py ... --input prompts.jsonl --output answers.jsonl

``<image>`` in the prompt stands for the next of ``--images``: a picture, which the tokenizer turns into
codes, or a ``.npy`` of 32 codes. A line of ``--input`` is ``{"prompt": [...]}`` with strings, ``{"image":
PATH}`` and ``{"codes": [32 integers]}``. Answers are JSON lines of the same form. Exit status: 0, or 2 for
wrong input.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `ray job submit` imports from elsewhere

from jobs.config_file import parse_config
from schemas.document import Codes
from tokenizer.text_tokenizer import TextTokenizer
from trainer.generate import SamplingConfig, generate
from trainer.load_model import load_marks, load_model
from trainer.prompt import Content, decode_contents, encode_prompt

PLACEHOLDER = "<image>"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Model, prompts and how answers are drawn."""

    model: str = ""
    """Folder of an exported model, or of a checkpoint (``checkpoints/step-...``)."""
    text_tokenizer: str = ""
    """Folder or file of the text tokenizer that the data were packed with."""
    prompt: str = ""
    images: tuple[str, ...] = ()
    """Pictures or ``.npy`` files of codes, for the ``<image>`` of the prompt."""
    input: str = ""
    """JSON lines of prompts, instead of ``prompt``."""
    output: str = "-"
    """File of JSON lines, ``-`` for the terminal."""
    image_tokenizer: str = "seed-2"
    """Turns pictures into codes; loaded only when there are pictures."""
    batch_size: int = 16
    device: str = "auto"
    precision: str = "fp32"
    """fp32 or bf16."""
    force_image: bool = False
    """Begin every answer with an image: short for ``sampling.forces_image``."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if self.force_image:
            object.__setattr__(self, "sampling", replace(self.sampling, forces_image=True))


def main(arguments: list[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    try:
        config = parse_config(GenerateConfig, arguments, __doc__ or "")
        for name in ("model", "text_tokenizer"):
            if not getattr(config, name):
                raise ValueError(f"--{name} is missing")
        write_answers(config, list(answer_all(config, read_prompts(config))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_prompts(config: GenerateConfig) -> list[list[Content]]:
    """Prompts of the command line or of the input file."""
    if bool(config.prompt) == bool(config.input):
        raise ValueError("give either --prompt or --input")
    reader = ImageReader(config.image_tokenizer)
    if config.prompt:
        return [_fill(config.prompt, config.images, reader)]
    lines = Path(config.input).read_text(encoding="utf-8").splitlines()
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append([_content(part, reader) for part in json.loads(line)["prompt"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{config.input} line {number}: {error}") from error
    return prompts


def _fill(prompt: str, images: Iterable[str], reader: "ImageReader") -> list[Content]:
    texts = prompt.split(PLACEHOLDER)
    paths = list(images)
    if len(paths) != len(texts) - 1:
        raise ValueError(f"the prompt has {len(texts) - 1} {PLACEHOLDER}, --images {len(paths)}")
    contents: list[Content] = [texts[0]]
    for path, text in zip(paths, texts[1:], strict=True):
        contents += [reader.codes(path), text]
    return [content for content in contents if not isinstance(content, str) or content]


def _content(part: Any, reader: "ImageReader") -> Content:
    if isinstance(part, str):
        return part
    if "image" in part:
        return reader.codes(part["image"])
    return np.array(part["codes"], np.uint16)


class ImageReader:
    """Codes of image files; the tokenizer is loaded when the first picture comes."""

    def __init__(self, tokenizer: str) -> None:
        self._name = tokenizer
        self._tokenizer: Any = None

    def codes(self, path: str) -> Codes:
        """Codes of a picture, or of a ``.npy`` that holds them."""
        if path.endswith(".npy"):
            return np.load(path, allow_pickle=False)
        from tokenizer.checkpoint import load_tokenizer
        from tokenizer.preprocess import PreprocessConfig, load_image

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._name, batch_size=1)
        pixels = load_image(Path(path), PreprocessConfig())
        return self._tokenizer.encode(pixels[None])[0]


def answer_all(config: GenerateConfig, prompts: list[list[Content]]) -> Iterator[list[Content]]:
    """Answers in the order of the prompts."""
    tokenizer = TextTokenizer(config.text_tokenizer)
    device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")
    if config.device != "auto":
        device = torch.device(config.device)
    model, layout = load_model(Path(config.model))
    if layout.base_size < tokenizer.base_size:  # more rows than ids: `text_tokenizer.base_vocabulary`
        raise ValueError(
            f"{config.text_tokenizer} has {tokenizer.base_size} ids, {config.model} was trained with "
            f"{layout.base_size}; give the text tokenizer of its mixture"
        )
    if marks := load_marks(Path(config.model)):
        tokenizer.use_marks(marks.bos_id, marks.eos_id)
    model = model.to(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    for start in range(0, len(prompts), config.batch_size):
        ids = [
            encode_prompt(prompt, tokenizer, layout) for prompt in prompts[start : start + config.batch_size]
        ]
        for answer in generate(model, ids, layout, tokenizer.eos_id, config.sampling, first_row=start):
            yield decode_contents(answer, tokenizer, layout)


def write_answers(config: GenerateConfig, answers: list[list[Content]]) -> None:
    """One JSON line an answer."""
    lines = []
    for answer in answers:
        parts = [part if isinstance(part, str) else {"codes": part.tolist()} for part in answer]
        lines.append(json.dumps({"answer": parts}, ensure_ascii=False) + "\n")
    if config.output == "-":
        sys.stdout.write("".join(lines))
    else:
        Path(config.output).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
