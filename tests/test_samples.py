"""The samples fit the sample tokenizer, and what is held out of one training is held out of the other."""

import io
import json
import tarfile
from pathlib import Path

import yaml
from PIL import Image

from pipeline.storage import open_folder
from pipeline.token_dataset import TokenDataset
from pipeline.training_pairs import PairDataConfig, group_of, is_held_out
from schemas.settings import parse_settings
from schemas.token_shard import read_documents
from tokenizer.checkpoint import load_tokenizer
from tokenizer.preprocess import PreprocessConfig, load_image

ROOT = Path(__file__).parents[1]
TOKENS = ROOT / "samples" / "tokens_emoji"
REMEDY = "the sample tokenizer changed: run `make emoji-tokens` (samples/README.md)"


def test_emoji_tokens_are_of_the_sample_tokenizer() -> None:
    preprocessing = PreprocessConfig(color="clean").fingerprint_components()
    fingerprint = load_tokenizer("sample").fingerprint(preprocessing)
    for name in ("train", "held_out"):
        dataset = TokenDataset.open(open_folder(str(TOKENS / name)))
        assert dataset.manifest.fingerprint == fingerprint, REMEDY
        assert dataset.footer(name).fingerprint == fingerprint, REMEDY


def test_held_out_emoji_are_those_of_the_tokenizer() -> None:
    data = parse_settings(
        PairDataConfig,
        yaml.safe_load((ROOT / "recipes" / "tokenizer_small.yaml").read_text())["data"],
        "data.",
    )
    keys = {
        name: [document.key for document in read_documents(TOKENS / name / f"{name}.parquet")]
        for name in ("train", "held_out")
    }
    groups = {name: {group_of(name, key, data.group_pattern) for key in keys[name]} for name in keys}
    assert not any(is_held_out(group, data.held_out_fraction) for group in groups["train"])
    assert all(is_held_out(group, data.held_out_fraction) for group in groups["held_out"])
    assert len(groups["held_out"]) == len(keys["held_out"]) > 150
    assert len(keys["train"]) > 3000


def test_pictures_of_held_out_emoji_give_the_codes_of_the_shards() -> None:
    codes = {
        document.key: document.images[0].codes.tolist()
        for document in read_documents(TOKENS / "held_out" / "held_out.parquet")
    }
    tokenizer = load_tokenizer("sample", batch_size=1)
    with tarfile.open(ROOT / "samples" / "emoji" / "held_out.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".png")]
        for name in names[::10]:
            data = tar.extractfile(name).read()
            assert Image.open(io.BytesIO(data)).size == (128, 128)
            pixels = load_image(data, PreprocessConfig(color="clean"))
            assert tokenizer.encode(pixels[None])[0].tolist() == codes[name.removesuffix(".png")], REMEDY
    assert len(names) > 40


def test_prompts_say_truly_what_was_seen() -> None:
    kept = {document.key for document in read_documents(TOKENS / "held_out" / "held_out.parquet")}
    seen = {document.key for document in read_documents(TOKENS / "train" / "train.parquet")}
    lines = (ROOT / "samples" / "emoji" / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for prompt in map(json.loads, lines):
        picture = ROOT / (prompt.get("picture") or prompt["prompt"][0]["image"])
        assert picture.is_file()
        assert picture.stem in (kept if prompt["note"].startswith("held out") else seen)
