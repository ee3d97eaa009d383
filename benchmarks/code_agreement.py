"""How many codes of real pictures change with precision, compilation and the company in a batch.

    python -m benchmarks.code_agreement [PICTURES...] [--tokenizer sample] [--precisions fp16] [--compiled]
        [--json FILE]

Pictures: tars, folders or image files; without them, those of samples/pairs. Every variant is compared with
fp32, not compiled. Then it does the same pictures in other orders, with other neighbours, positions and
padding, and no code may change. The size of SEED-2 without its weights, drawn as for the tests:

    python -m tests.tokenizer.full_recipe out/seed2_drawn
    python -m benchmarks.code_agreement --tokenizer out/seed2_drawn --precisions bf16 fp16 --batch-size 4
"""

import argparse
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tokenizer.checkpoint import load_tokenizer
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image
from tokenizer.seed import PRECISIONS, SeedTokenizer

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_pictures(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """(224, 224, 3) uint8 of every sound picture."""
    for path in paths:
        if path.is_dir():
            yield from read_pictures(sorted(path.iterdir()))
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                yield from _sound(
                    tar.extractfile(member).read() for member in tar if _is_picture(member.name)
                )
        elif _is_picture(path.name):
            yield from _sound([path.read_bytes()])


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _sound(files: Iterator[bytes] | list[bytes]) -> Iterator[np.ndarray]:
    for data in files:
        try:
            yield load_image(data, PreprocessConfig())
        except ImageError:
            continue


def codes_in_other_company(tokenizer: SeedTokenizer, pictures: np.ndarray, seed: int) -> np.ndarray:
    """The codes again, with the pictures in random order behind some that are not asked for."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pictures))
    strangers = rng.integers(0, 256, (int(rng.integers(1, tokenizer.batch_size + 1)), *pictures.shape[1:]))
    codes = tokenizer.encode(np.concatenate([strangers.astype(np.uint8), pictures[order]]))
    found = np.empty((len(pictures), codes.shape[1]), codes.dtype)
    found[order] = codes[len(strangers) :]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", type=Path, default=[Path("samples/pairs")])
    parser.add_argument("--tokenizer", default="sample")
    parser.add_argument("--precisions", nargs="+", choices=sorted(PRECISIONS), default=["fp32", "bf16"])
    parser.add_argument("--compiled", action="store_true", help="each also compiled by torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="pictures")
    parser.add_argument("--companies", type=int, default=3, help="how often other neighbours are drawn")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    pictures = np.stack(list(read_pictures(options.pictures))[: options.limit])
    variants = [("fp32", False)]
    for precision in options.precisions:
        variants += [(precision, False)] * (precision != "fp32") + [(precision, True)] * options.compiled
    reference: np.ndarray | None = None
    figures = []
    print(f"{options.tokenizer}, {len(pictures)} pictures, {options.device}, torch {torch.__version__}")
    print("variant         codes equal to fp32  pictures with another code  changed by neighbours")
    for precision, compiled in variants:
        tokenizer = load_tokenizer(
            options.tokenizer,
            precision=precision,
            batch_size=options.batch_size,
            device=options.device,
            compiled=compiled,
        )
        codes = tokenizer.encode(pictures)
        reference = codes if reference is None else reference
        others = [codes_in_other_company(tokenizer, pictures, seed) for seed in range(options.companies)]
        moved = sum(int((other != codes).sum()) for other in others)
        equal = codes == reference
        name = precision + " compiled" * compiled
        figures.append(
            {
                "tokenizer": options.tokenizer,
                "variant": name,
                "pictures": len(pictures),
                "equal_fraction": float(equal.mean()),
                "moved": moved,
            }
        )
        print(
            f"{name:15} {equal.sum():>8} of {equal.size:>6} ({equal.mean():.2%}) "
            f"{int((~equal.all(axis=1)).sum()):>12} {moved:>24}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(row["moved"] for row in figures))


if __name__ == "__main__":
    raise SystemExit(main())
