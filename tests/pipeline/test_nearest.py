"""The nearest images of a folder against brute force, from a key, from codes and from a picture."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.inspect_shards import main
from pipeline.nearest import ImagePlace, embedder, find_nearest, images_of
from pipeline.storage import open_folder
from pipeline.token_dataset import TokenDataset
from schemas.document import Codes
from tokenizer.checkpoint import load_tokenizer
from tokenizer.seed import SeedTokenizer

SAMPLES = Path(__file__).parents[2] / "samples"
FOLDER = str(SAMPLES / "tokens_emoji" / "held_out")
FOX = "1f98a"


@pytest.fixture(scope="module")
def tokenizer() -> SeedTokenizer:
    return load_tokenizer("sample")


@pytest.fixture(scope="module")
def images() -> list[tuple[ImagePlace, Codes]]:
    return list(images_of(TokenDataset.open(open_folder(FOLDER))))


def show(*arguments: str) -> list[list[str]]:
    output = io.StringIO()
    assert main(["show", *arguments], output) == 0
    return [line.split(maxsplit=3) for line in output.getvalue().splitlines()]


@pytest.mark.parametrize("space", ["generation", "causal"])
def test_equals_brute_force(
    space: str, tokenizer: SeedTokenizer, images: list[tuple[ImagePlace, Codes]]
) -> None:
    keys = [place.key for place, _ in images]
    codes = torch.from_numpy(np.stack([codes for _, codes in images]).astype(np.int64))
    with torch.inference_mode():
        if space == "generation":
            features = tokenizer.model.generation_embedding(codes)[:, None]
        else:
            features = tokenizer.model.causal_embeddings(codes)
    own = features[keys.index(FOX)].expand_as(features)
    similarity = torch.cosine_similarity(features, own, dim=-1).mean(dim=1)
    similarity[keys.index(FOX)] = -2
    expected = [keys[index] for index in similarity.argsort(descending=True)[:4]]
    lines = show(FOLDER, "--nearest", FOX, "--limit", "4", "--space", space)
    assert [line[2] for line in lines] == expected
    assert [float(line[0]) for line in lines] == pytest.approx(similarity.topk(4).values.tolist(), abs=1e-4)


def test_codes_and_pictures_as_queries(images: list[tuple[ImagePlace, Codes]], tmp_path: Path) -> None:
    """A picture gives its codes again, and an image whose codes are in the folder is its own nearest."""
    place, codes = next((place, codes) for place, codes in images if place.key == FOX)
    (tmp_path / "fox.json").write_text(json.dumps({"codes": codes.tolist()}))
    first = show(FOLDER, "--nearest", str(tmp_path / "fox.json"), "--limit", "2")
    assert first[0] == ["1.0000", "held_out", FOX, json.dumps(place.text)]
    with tarfile.open(SAMPLES / "emoji" / "held_out.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".png"))
        (tmp_path / name).write_bytes(tar.extractfile(name).read())
    nearest = show(FOLDER, "--nearest", str(tmp_path / name), "--limit", "1")
    assert nearest[0][:3] == ["1.0000", "held_out", name.removesuffix(".png")]


def test_memory_holds_one_batch_and_the_best(
    tokenizer: SeedTokenizer, images: list[tuple[ImagePlace, Codes]]
) -> None:
    """Images are taken a batch at a time, and the batch does not change what is found."""
    embed, taken, batches = embedder(tokenizer, "generation"), [0], list[int]()

    def counted() -> Iterator[tuple[ImagePlace, Codes]]:
        for image in images:
            taken[0] += 1
            yield image

    def watched(codes: Codes) -> torch.Tensor:
        batches.append(len(codes))
        assert taken[0] == sum(batches[1:])  # the first call is the query: nothing read ahead
        return embed(codes)

    query = images[5][1]
    found = find_nearest(counted(), query, watched, 6, batch=16)
    assert max(batches) == 16
    assert [hit.place for hit in found] == [hit.place for hit in find_nearest(images, query, embed, 6)]
    assert found[0].place == images[5][0]


def test_what_cannot_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["show", FOLDER, "--nearest", *arguments]) == 2
        return capsys.readouterr().err

    assert "neither a file nor the key" in error("nothing")
    assert "at least 1" in error(FOX, "--limit", "0")
    assert "no token shard other" in error(FOX, "--shard", "other")
    (tmp_path / "two.json").write_text(json.dumps([[1] * 32, [2] * 32]))
    assert "codes of 2 images" in error(str(tmp_path / "two.json"))
    from tokenizer.__main__ import main as tokenizer_main

    tokenizer_main(["draw", str(tmp_path / "drawn")])
    assert "give the one that made them" in error(FOX, "--tokenizer", str(tmp_path / "drawn"))
