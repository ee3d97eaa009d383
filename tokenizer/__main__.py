"""Command line: ``python -m tokenizer encode IMAGE...``, ``decode``, ``info``, ``convert``, ``draw``."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from schemas.one_line_parser import OneLineParser
from tokenizer.checkpoint import load_model, load_tokenizer, save_model
from tokenizer.config import SeedTokenizerConfig
from tokenizer.detokenizer import add_decode_command
from tokenizer.hub import PRESETS, show_hub_requests
from tokenizer.official_names import official_layout
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image
from tokenizer.seed import ENCODER_VERSION, PRECISIONS, SeedModel, SeedTokenizer
from tokenizer.untrained import SMALL_CONFIG, untrained_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status: 0, 1 for pictures that failed, 2 for anything else
    wrong.
    """
    options = _parser().parse_args(arguments)
    show_hub_requests()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _encode(options: argparse.Namespace) -> int:
    """One JSON line a picture; pictures that fail are named on stderr and the others go on."""
    preprocess = PreprocessConfig(filter=options.filter, color=options.color)
    tokenizer = load_tokenizer(
        options.tokenizer,
        precision=options.precision,
        batch_size=min(options.batch_size, len(options.images)),
        device=options.device,
    )
    num_failed = 0
    for start in range(0, len(options.images), options.batch_size):
        pixels = {}
        for path in options.images[start : start + options.batch_size]:
            try:
                pixels[path] = load_image(path, preprocess)
            except (ImageError, OSError) as error:
                print(f"{path}: {error}", file=sys.stderr)
                num_failed += 1
        if pixels:
            for path, codes in zip(pixels, tokenizer.encode(np.stack(list(pixels.values()))), strict=True):
                print(json.dumps({"image": str(path), "codes": codes.tolist()}))
    return 1 if num_failed else 0


def _info(options: argparse.Namespace) -> int:
    model, digest = load_model(options.tokenizer)
    parts = official_sizes(model)
    preprocessing = PreprocessConfig().fingerprint_components()
    fingerprint = SeedTokenizer(model, weights_sha256=digest).fingerprint(preprocessing)
    facts = {
        "tokenizer": options.tokenizer,
        "fingerprint": fingerprint.hex,
        "fingerprint_is_of": {"precision": "fp32", "encoder_version": ENCODER_VERSION, **preprocessing},
        "weights_sha256": digest,
        "num_parameters": parts.total(),
        "num_parameters_of": parts,
        "config": model.config.to_dict(),
    }
    print(json.dumps(facts, indent=2))
    return 0


def official_sizes(model: SeedModel) -> Counter[str]:
    """Numbers in the official tensors of each part; the zero key biases that ours are fused with are none."""
    parameters = dict(model.named_parameters())
    sizes: Counter[str] = Counter()
    for name, official in official_layout(model.config).items():
        num_stored = sum(part is not None for part in official)
        sizes[name.partition(".")[0]] += parameters[name].numel() * num_stored // len(official)
    return sizes


def _convert(options: argparse.Namespace) -> int:
    """Any source to ``model.safetensors`` + ``config.json``."""
    model, digest = load_model(options.tokenizer, drop_unexpected=options.drop_unexpected)
    save_model(model, options.directory)
    print(json.dumps({"directory": str(options.directory), "weights_sha256": digest}))
    return 0


def _draw(options: argparse.Namespace) -> int:
    """Write an untrained tokenizer."""
    config = SMALL_CONFIG if options.config is None else SeedTokenizerConfig.from_json(options.config)
    with torch.inference_mode():
        save_model(untrained_model(config, options.seed), options.directory)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = OneLineParser(prog="python -m tokenizer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sources = f"preset ({', '.join(PRESETS)}), directory, weights file or Hugging Face id"
    defaults = PreprocessConfig()

    encode = commands.add_parser("encode", help="print the codes of pictures, one JSON object a line")
    encode.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    encode.add_argument("--tokenizer", default="sample", help=sources)
    encode.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    encode.add_argument("--batch-size", type=_positive, default=32)
    encode.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    encode.add_argument("--filter", default=defaults.filter, help="bicubic or bilinear")
    encode.add_argument("--color", default=defaults.color, help="reference or clean")
    encode.set_defaults(run=_encode)

    add_decode_command(commands)

    info = commands.add_parser("info", help="print configuration, parameter count and hash of a tokenizer")
    info.add_argument("tokenizer", help=sources)
    info.set_defaults(run=_info)

    convert = commands.add_parser("convert", help="write any tokenizer as model.safetensors + config.json")
    convert.add_argument("tokenizer", help=sources)
    convert.add_argument("directory", type=Path)
    convert.add_argument("--drop-unexpected", action="store_true", help="leave out tensors the model lacks")
    convert.set_defaults(run=_convert)

    draw = commands.add_parser("draw", help="write an untrained tokenizer (random weights)")
    draw.add_argument("directory", type=Path)
    draw.add_argument("--config", type=Path, help="config.json of its sizes; without, a small one")
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(run=_draw)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
