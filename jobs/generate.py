#!/usr/bin/env python3
"""Continue prompts of text and images with a trained model.

    python jobs/generate.py --model out/run/model --text-tokenizer samples/text_tokenizer --prompt "A dog"
    python jobs/generate.py ... --prompt "<image> shows" --images dog.jpg
    python jobs/generate.py ... --prompt "A red bicycle" --force-image
    python jobs/generate.py ... --input prompts.jsonl --output answers.jsonl
    python jobs/generate.py ... --input samples/emoji/prompts.jsonl --gallery out/gallery

``<image>`` in the prompt stands for the next of ``--images``: a picture, which the tokenizer turns into
codes, or a ``.npy`` of 32 codes. A line of ``--input`` is ``{"prompt": [...]}`` with strings, ``{"image":
PATH}`` and ``{"codes": [32 integers]}``, or ``{"prompt": "...", "images": [PATH]}`` as on the command line;
it may say ``forces_image`` for itself, and give the contact sheet a ``picture`` (a file) and a ``note``.
Answers are JSON lines of the same form. Exit status: 0, or 2 for wrong input.
"""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `ray job submit` imports from elsewhere

from jobs.command_line import unreadable
from jobs.config_file import parse_config
from schemas.document import Codes
from schemas.vocabulary import CODEBOOK_SIZE
from tokenizer.checkpoint import load_tokenizer
from tokenizer.color import ColorRule
from tokenizer.detokenizer import Detokenizer, load_detokenizer
from tokenizer.hub import check_source, show_hub_requests
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image
from tokenizer.seed import SeedTokenizer
from trainer.answering import PRECISIONS, AnsweringModel
from trainer.contact_sheet import Cell, contact_sheet
from trainer.generate import SamplingConfig
from trainer.load_model import RELEASE, check_codebook, check_worth_fetching
from trainer.prompt import Content

PLACEHOLDER = "<image>"
PROMPT_FIELDS = ("prompt", "images", "forces_image", "picture", "note")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Model, prompts and how answers are drawn."""

    model: str = ""
    """Folder of an exported model, or of a checkpoint (``checkpoints/step-...``)."""
    text_tokenizer: str = ""
    """Folder or file of the one that the data were packed with; empty: it lies beside the model."""
    prompt: str = ""
    """Text to continue; each ``<image>`` in it stands for the next of ``images``."""
    images: tuple[str, ...] = ()
    """Pictures or ``.npy`` files of codes, for the ``<image>`` of the prompt."""
    input: str = ""
    """JSON lines of prompts, instead of ``prompt``."""
    output: str = "-"
    """File of JSON lines, ``-`` for the terminal."""
    tokenizer: str = RELEASE
    """Image tokenizer: turns pictures into codes, and codes into pictures; loaded only when there are any."""
    color: ColorRule = "reference"
    """Colour rule for pictures, that of the tokenized data: reference, or clean (the sample tokenizer)."""
    gallery: str = ""
    """Folder for the drawn pictures as PNG and a contact sheet of prompts and answers; empty for none."""
    diffusion: str = ""
    """unCLIP pipeline that draws the gallery; empty: the small pixel decoder beside the image tokenizer."""
    batch_size: int = 16
    """Prompts answered at once."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:N."""
    precision: str = "fp32"
    """fp32 or bf16."""
    force_image: bool = False
    """Begin every answer with an image: short for ``sampling.forces_image``."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if self.force_image:
            object.__setattr__(self, "sampling", replace(self.sampling, forces_image=True))


Part = str | Mapping[str, Any]
"""Of a prompt in JSON: a text, or an object with ``image`` or ``codes``."""


@dataclass(frozen=True)
class Prompt:
    """One question to the model."""

    contents: list[Content]
    forces_image: bool = False
    picture: str = ""
    """File of what is asked for or about, for the contact sheet."""
    note: str = ""
    """A word about the prompt, for the contact sheet."""


def main(arguments: list[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    show_hub_requests()
    try:
        config = parse_config(GenerateConfig, arguments, __doc__ or "")
        if not config.model:
            raise ValueError("--model is missing")
        check_source(config.tokenizer)
        detokenizer = None
        if config.gallery:
            check_worth_fetching(Path(config.model), config.tokenizer, "--tokenizer ")
            detokenizer = load_detokenizer(config.tokenizer, config.diffusion or None)
            check_made_for(config, detokenizer.tokenizer)
            num_codes = detokenizer.tokenizer.config.n_embed
            config = replace(config, sampling=replace(config.sampling, num_codes=num_codes))
        prompts = read_prompts(config)
        answers = answer_all(config, prompts)
        write_answers(config, answers)
        if detokenizer is not None:
            write_gallery(Path(config.gallery), detokenizer, prompts, answers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_prompts(config: GenerateConfig) -> list[Prompt]:
    """Prompts of the command line or of the input file."""
    if bool(config.prompt) == bool(config.input):
        raise ValueError("give either --prompt or --input")
    reader = ImageReader(config)
    forces_image = config.sampling.forces_image
    if config.prompt:
        parts = _fill(config.prompt, [{"image": path} for path in config.images])
        contents = [_content(part, reader) for part in parts]
        return [Prompt(contents, forces_image, next(iter(config.images), ""))]
    try:
        lines = Path(config.input).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise unreadable("--input", config.input, error) from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append(_prompt(json.loads(line), forces_image, reader))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{config.input} line {number}: {error}") from error
    return prompts


def _prompt(fields: Mapping[str, Any], forces_image: bool, reader: "ImageReader") -> Prompt:
    if not isinstance(fields, Mapping) or "prompt" not in fields:
        raise ValueError('expected an object with "prompt"')
    if unknown := sorted(fields.keys() - PROMPT_FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r}; known: {', '.join(PROMPT_FIELDS)}")
    parts = fields["prompt"]
    if isinstance(parts, str):
        parts = _fill(parts, [{"image": path} for path in fields.get("images", ())])
    elif "images" in fields:
        raise ValueError('"images" goes with a prompt that is one string')
    pictures = [part["image"] for part in parts if isinstance(part, Mapping) and "image" in part]
    return Prompt(
        [_content(part, reader) for part in parts],
        bool(fields.get("forces_image", forces_image)),
        str(fields.get("picture", next(iter(pictures), ""))),
        str(fields.get("note", "")),
    )


def _fill(prompt: str, images: Sequence[Part]) -> list[Part]:
    """The parts of a prompt that says where its images go."""
    texts = prompt.split(PLACEHOLDER)
    if len(images) != len(texts) - 1:
        raise ValueError(f"the prompt has {len(texts) - 1} {PLACEHOLDER}, --images {len(images)}")
    parts: list[Part] = [texts[0]]
    for image, text in zip(images, texts[1:], strict=True):
        parts += [image, text]
    return [part for part in parts if part]


def _content(part: Any, reader: "ImageReader") -> Content:
    if isinstance(part, str):
        return part
    if "image" in part:
        return reader.codes(part["image"])
    codes = np.array(part["codes"])
    if codes.dtype.kind != "i" or codes.min(initial=0) < 0 or codes.max(initial=0) >= CODEBOOK_SIZE:
        raise ValueError(f"codes must be integers from 0 to {CODEBOOK_SIZE - 1}, got {part['codes']}")
    return codes.astype(np.uint16)


class ImageReader:
    """Codes of image files; the tokenizer is loaded when the first picture comes."""

    def __init__(self, config: GenerateConfig) -> None:
        self._config = config
        self._preprocess = PreprocessConfig(color=config.color)
        self._tokenizer: SeedTokenizer | None = None

    def codes(self, path: str) -> Codes:
        """Codes of a picture, or of a ``.npy`` that holds them."""
        if path.endswith(".npy"):
            codes: Codes = np.load(path, allow_pickle=False)
            return codes
        if self._tokenizer is None:
            config = self._config
            check_worth_fetching(Path(config.model), config.tokenizer, "--tokenizer ")
            self._tokenizer = load_tokenizer(self._config.tokenizer, batch_size=1)
            check_made_for(self._config, self._tokenizer)
        try:
            pixels = load_image(Path(path), self._preprocess)
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
        encoded: Codes = self._tokenizer.encode(pixels[None])[0]
        return encoded


def check_made_for(config: GenerateConfig, tokenizer: SeedTokenizer) -> None:
    """Raise ValueError if the model learned other codes than the tokenizer makes."""
    check_codebook(Path(config.model), tokenizer.codebook_hex, f"--tokenizer {config.tokenizer}")


def answer_all(config: GenerateConfig, prompts: list[Prompt]) -> list[list[Content]]:
    """Answers in the order of the prompts, each drawn by its place among all of them."""
    model = AnsweringModel.load(config.model, config.text_tokenizer, config.device, config.precision)
    answers: list[list[Content]] = []
    for forces_image, group in itertools.groupby(prompts, lambda prompt: prompt.forces_image):
        sampling = replace(config.sampling, forces_image=forces_image)
        contents = [prompt.contents for prompt in group]
        answers += model.answers(contents, sampling, config.batch_size, first_row=len(answers))
    return answers


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


def write_gallery(
    folder: Path, detokenizer: Detokenizer, prompts: list[Prompt], answers: list[list[Content]]
) -> None:
    """``NUMBER.png`` of the first image of each answer, and ``sheet.png`` of all prompts and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [next((part for part in answer if not isinstance(part, str)), None) for answer in answers]
    cells = []
    for number, (prompt, answer, codes) in enumerate(zip(prompts, answers, drawn, strict=True)):
        picture = None
        if codes is not None:
            picture = Image.fromarray(detokenizer.draw(codes[None])[0])
            picture.save(folder / f"{number:03d}.png")
        has_source = prompt.picture and not prompt.picture.endswith(".npy")
        source = Image.open(prompt.picture) if has_source else None
        cells.append(Cell(source, picture, text_of(prompt.contents), text_of(answer), prompt.note))
    contact_sheet(cells).save(folder / "sheet.png", optimize=True)
    print(f"{folder}/sheet.png: {len(cells)} prompts, {sum(codes is not None for codes in drawn)} drawn")


def text_of(contents: list[Content]) -> str:
    """The text parts in a row."""
    return " ".join(part.strip() for part in contents if isinstance(part, str))


if __name__ == "__main__":
    sys.exit(main())
