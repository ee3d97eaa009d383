"""Train the small BPE tokenizer of this folder: byte fallback, blanks as "▁", as LLaMA's.

    python samples/text_tokenizer/train.py TAR_OR_PARQUET... --output samples/text_tokenizer

Reads captions (``.txt`` members) of WebDataset shards and texts of documents in the OBELICS layout.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

VOCABULARY_SIZE = 2048
BYTE_TOKENS = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
UNLICENSED = "abidrahmank/"
"""Documents of this repository have no licence file beside them; they are left out."""


def read_texts(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        for row in pq.read_table(path).to_pylist():
            if UNLICENSED not in row["general_metadata"]:
                yield from filter(None, row["texts"])
        return
    with tarfile.open(path) as shard:
        for member in shard:
            if member.name.endswith(".txt"):
                yield io.TextIOWrapper(shard.extractfile(member), encoding="utf-8").read()


def words_of(texts: Iterator[str]) -> Iterator[str]:
    """Blank-led words, so that no piece spans two words."""
    for text in texts:
        yield from ("▁" + word for word in text.split())


def train(texts: Iterator[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS + BYTE_TOKENS,
        min_frequency=2,
        limit_alphabet=120,
        show_progress=False,
    )
    tokenizer.train_from_iterator(words_of(texts), trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = []  # the bytes are ordinary entries of the vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = train(text for path in arguments.inputs for text in read_texts(path))
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (arguments.output / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
