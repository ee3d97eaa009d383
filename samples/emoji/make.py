#!/usr/bin/env python3
"""Make the token shards of the emoji, and the few emoji pictures of this folder, from all 3,545 pairs.

    python samples/emoji/make.py --input '../shared/data/emoji/*.tar'

Needed again whenever the tokenizer in ``tokenizer/sample`` changes (a test compares fingerprints). Emoji that
the tokenizer never saw (``data`` of recipes/tokenizer_small.yaml) are kept from the language model, too: they
make ``samples/tokens_emoji/held_out``, all others ``samples/tokens_emoji/train``.
"""

import argparse
import io
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.tokenize_pairs import main as tokenize_pairs
from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.sources.tar_reader import TarSample
from pipeline.training_pairs import PairDataConfig, group_of, is_held_out
from schemas.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tokenizer_small.yaml"
TOKENS = Path("samples/tokens_emoji")
PICTURES = Path("samples/emoji")
PICTURE_EVERY = 4
"""One of so many held-out pictures goes into ``held_out.tar``."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="WebDataset shards of the emoji")
    inputs = [os.path.abspath(pattern) for pattern in parser.parse_args().input]
    os.chdir(ROOT)  # token shards name their source relative to it
    train, held_out = split(inputs)
    work = Path("out/emoji")
    shutil.rmtree(TOKENS, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    for name, samples in (("train", train), ("held_out", held_out)):
        write_tar(work / f"{name}.tar", samples)
        arguments = ["--input", f"{work}/{name}.tar", "--output", f"{TOKENS}/{name}", "--tokenizer", "sample"]
        fields = ["--pairs.metadata-fields", "license", "skin_tone"]
        if status := tokenize_pairs([*arguments, "--color", "clean", "--num-actors", "0", *fields]):
            sys.exit(status)
        shutil.rmtree(TOKENS / name / "_logs")
        (TOKENS / name / "_report.json").unlink()  # how fast it went: another text on every run
    write_tar(PICTURES / "held_out.tar", held_out[::PICTURE_EVERY])
    prompts = (PICTURES / "prompts.jsonl").read_text(encoding="utf-8")
    for sample in [*train, *held_out]:
        if f"/{sample.key}.png" in prompts:
            (PICTURES / f"{sample.key}.png").write_bytes(sample.members["png"])


def split(inputs: list[str]) -> tuple[list[TarSample], list[TarSample]]:
    """Samples for training, and of each held-out group the first by key (as ``split_pairs``)."""
    entries = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["data"]
    data = parse_settings(PairDataConfig, entries, "data.")
    train: list[TarSample] = []
    held_out: dict[str, TarSample] = {}
    for shard in expand_inputs(inputs):
        for sample in read_shard(shard):
            if not isinstance(sample, TarSample):
                raise ValueError(f"{shard.name}: {sample}")
            group = group_of(shard.name, sample.key, data.group_pattern)
            if not is_held_out(group, data.held_out_fraction):
                train.append(sample)
            elif group not in held_out or sample.key < held_out[group].key:
                held_out[group] = sample
    return train, [held_out[group] for group in sorted(held_out)]


def write_tar(path: Path, samples: Iterable[TarSample]) -> None:
    """The same samples give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for extension, data in sample.members.items():
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
