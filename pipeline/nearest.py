"""Images of a folder of token shards whose embeddings are nearest to a query's; no pixels are read.

Similarities come from codes and the tokenizer alone: ``generation`` is the cosine of two generation
embeddings (what pictures are drawn from), ``causal`` the mean over the queries of the cosines of the causal
embeddings that the reconstruction head gives back. Documents stream; memory holds one batch and the best.

Dimensions: B images of a batch, N codes each, Q embeddings per image (1, or N), D their width.
"""

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from pipeline.made_by import check_tokenizer, preprocess_of
from pipeline.shard_task import TOKEN_SHARD_SUFFIX
from pipeline.token_dataset import TokenDataset
from schemas.document import Codes, Document
from schemas.token_shard import read_documents
from tokenizer.checkpoint import load_tokenizer
from tokenizer.detokenizer import read_codes
from tokenizer.preprocess import ImageError, load_image
from tokenizer.seed import SeedTokenizer

BATCH = 256
CHARS_SHOWN = 80


@dataclass(frozen=True)
class ImagePlace:
    """Where an image stands in a folder of token shards."""

    shard: str
    row: int
    image: int
    """Of the document's images, from 0."""
    key: str
    text: str
    """The document's first text."""


@dataclass(frozen=True)
class Neighbour:
    """An image and how similar it is, -1..1."""

    similarity: float
    place: ImagePlace


Embed = Callable[[npt.NDArray[np.uint16]], Tensor]
"""(B, N) codes -> (B, Q, D) fp32, each of the Q x D normalised along D."""


def embedder(tokenizer: SeedTokenizer, space: str) -> Embed:
    """Embeddings of codes in one of the two spaces, ``generation`` or ``causal``.

    Raises:
        ValueError: another space.
    """
    if space == "generation":
        return lambda codes: F.normalize(tokenizer.generation_embedding(codes), dim=-1)[:, None]
    if space == "causal":
        return lambda codes: F.normalize(tokenizer.causal_embeddings(codes), dim=-1)
    raise ValueError(f"space must be generation or causal, got {space!r}")


def images_of(dataset: TokenDataset, shard: str | None = None) -> Iterator[tuple[ImagePlace, Codes]]:
    """Every image of a folder, or of one of its token shards, with its codes, in order of the shards' names.

    Raises:
        ValueError: the folder holds no such shard.
    """
    names = sorted(dataset.done())
    if shard is not None:
        shard = shard.removesuffix(TOKEN_SHARD_SUFFIX)
        if shard not in names:
            raise ValueError(f"{dataset.folder.url}: no token shard {shard}")
        names = [shard]
    for name in names:
        documents = read_documents(**dataset.folder.parquet_source(name + TOKEN_SHARD_SUFFIX))
        for row, document in enumerate(documents):
            for index, image in enumerate(document.images):
                yield ImagePlace(name, row, index, document.key, _first_text(document)), image.codes


def _first_text(document: Document) -> str:
    return next(iter(document.texts), "")


def find_nearest(
    images: Iterable[tuple[ImagePlace, Codes]], query: Codes, embed: Embed, limit: int, *, batch: int = BATCH
) -> list[Neighbour]:
    """The ``limit`` images most similar to a query, best first; among equals the earlier one.

    Args:
        images: places and codes; taken ``batch`` at a time.
        query: (N,) codes.
        embed: of ``embedder``.
        limit: how many, at least 1.
        batch: images embedded at once.
    """
    wanted_QD = embed(query[None])[0]
    best: list[tuple[float, int, ImagePlace]] = []  # a heap, the worst first; no two have one number
    numbers, rest = itertools.count(), iter(images)
    while part := list(itertools.islice(rest, batch)):
        embedded_BQD = embed(np.stack([codes for _, codes in part]))
        similarities = (embedded_BQD * wanted_QD).sum(dim=-1).mean(dim=-1).tolist()
        for similarity, (place, _), number in zip(similarities, part, numbers, strict=False):
            entry = (similarity, -number, place)
            if len(best) < limit:
                heapq.heappush(best, entry)
            else:
                heapq.heappushpop(best, entry)
    return [Neighbour(similarity, place) for similarity, _, place in sorted(best, reverse=True)]


def print_nearest(
    dataset: TokenDataset,
    query: str,
    *,
    tokenizer: str,
    space: str,
    shard: str | None,
    limit: int,
    output: TextIO,
) -> int:
    """``seed-shards show --nearest``: a line for each of the most similar images; the exit status.

    Args:
        dataset: folder of token shards.
        query: a picture, a file of codes (``.json``, ``.jsonl``), or the key of a document (its first image).
        tokenizer: the one that made the folder: preset, directory, hub id.
        space: generation or causal.
        shard: look only there.
        limit: lines.
        output: where they go.

    Raises:
        ValueError: nothing fits the query, or the tokenizer made other codes than the folder's.
    """
    if limit < 1:
        raise ValueError(f"--limit must be at least 1 with --nearest, got {limit}")
    loaded = load_tokenizer(tokenizer)
    check_tokenizer(dataset, loaded, tokenizer)
    codes, itself = _codes_of(query, dataset, shard, loaded)
    others = ((place, codes) for place, codes in images_of(dataset, shard) if place != itself)
    for neighbour in find_nearest(others, codes, embedder(loaded, space), limit):
        place = neighbour.place
        image = f" image {place.image}" if place.image else ""
        text = json.dumps(place.text[:CHARS_SHOWN], ensure_ascii=False)
        print(f"{neighbour.similarity:.4f}  {place.shard}  {place.key}{image}  {text}", file=output)
    return 0


def _codes_of(
    query: str, dataset: TokenDataset, shard: str | None, tokenizer: SeedTokenizer
) -> tuple[Codes, ImagePlace | None]:
    """Codes of a query, and its place if it is an image of the folder."""
    path = Path(query)
    if path.is_file() and path.suffix in (".json", ".jsonl"):
        rows = read_codes(path)
        if len(rows) != 1:
            raise ValueError(f"{path}: holds codes of {len(rows)} images; --nearest takes one")
        return rows[0].astype(np.uint16), None
    if path.is_file():
        try:
            pixels = load_image(path, preprocess_of(dataset))
        except ImageError as error:
            raise ValueError(f"--nearest {path}: {error}") from error
        return tokenizer.encode(pixels[None])[0], None
    for place, codes in images_of(dataset, shard):
        if place.key == query:
            return codes, place
    raise ValueError(f"--nearest {query}: neither a file nor the key of a document with an image here")
