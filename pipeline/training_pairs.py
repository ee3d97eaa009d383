"""Image-text pairs for training the tokenizer, from the same shards and reader as tokenization.

Pictures are decoded and squashed once and kept in memory as uint8 (147 KiB each), which suits up to some
hundred thousand pairs on one machine; ``PairBatches`` draws batches of them. Every batch is a pure function
of seed and step, so a run resumes exactly, on any number of ranks.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.inputs import SourceShard, expand_inputs
from pipeline.read_shard import read_shard
from pipeline.sources.pairs import read_pairs
from pipeline.sources.records import RawDocument
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image

logger = logging.getLogger(__name__)

MANY_VARIANTS = 8
"""Pairs to a group, on the average, that are warned of: emoji with all their skin tones have about two."""


@dataclass(frozen=True, kw_only=True)
class PairDataConfig:
    """Which pairs, and which of them are kept for evaluation."""

    input: tuple[str, ...] = ()
    """Tar shards as for tokenization: files, globs, braces, folders, ``@file`` lists, URLs."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    group_pattern: str = ""
    """What this removes from a key gives the group, over all shards: variants of one picture, on one side of
    the split. Empty: every sample of every shard is a group of its own."""
    held_out_fraction: float = 0.02
    """Share of the groups that are never trained on, chosen by their names alone."""
    shuffle_pairs: int = 0
    """0: all pairs are held in memory. Otherwise they are streamed through a shuffle buffer of so many."""
    pairs_per_epoch: int = 0
    """Streaming only: how many pairs count as an epoch."""
    held_out_limit: int = 1000
    """Streaming only: held-out groups that are looked for before training, by the first process; that reads
    ``held_out_limit / held_out_fraction`` pairs from the start of the shards, and decodes the kept ones."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"data.held_out_fraction must be in (0, 1), got {self.held_out_fraction}")
        re.compile(self.group_pattern)
        if self.shuffle_pairs < 0 or self.held_out_limit < 1:
            raise ValueError("data.shuffle_pairs must not be negative, data.held_out_limit at least 1")
        if self.shuffle_pairs and self.pairs_per_epoch < 1:
            raise ValueError("data.pairs_per_epoch must be given where pairs are streamed (shuffle_pairs)")

    def shards(self) -> list[SourceShard]:
        """All shards in the order of the patterns; if two folders hold shards of one name, the second such
        shard is named ``NAME (2)``.

        Raises:
            ValueError, FileNotFoundError: no pattern is given, or one matches nothing.
        """
        if not self.input:
            raise ValueError("data.input: no shards are given")
        found = [shard for pattern in self.input for shard in expand_inputs([pattern])]
        seen: Counter[str] = Counter()
        named = []
        for shard in {shard.url: shard for shard in found}.values():
            seen[shard.name] += 1
            count = seen[shard.name]
            named.append(replace(shard, name=f"{shard.name} ({count})") if count > 1 else shard)
        return named

    def settings(self, shards: Sequence[SourceShard], num_ranks: int) -> dict[str, Any]:
        """What decides the pairs of every step, for the description of a run: it goes on with these alone.

        Shards count by name, size and order, not by place: they may move.

        Args:
            shards: of ``shards``.
            num_ranks: counts where pairs are streamed, since each rank then has shards of its own.
        """
        listing = "\n".join(f"{shard.name}\t{shard.num_bytes}" for shard in shards)
        names = ("preprocess", "group_pattern", "held_out_fraction", "shuffle_pairs")
        return {name: getattr(self, name) for name in names} | {
            "num_shards": len(shards),
            "shards_sha256": sha256(listing.encode()).hexdigest(),
            "num_ranks": num_ranks if self.shuffle_pairs else "any",
        }


@dataclass(frozen=True)
class TrainingPair:
    """One picture with its caption."""

    key: str
    group: str
    """Pairs of one group show the same thing; they are never split between training and held-out."""
    image: npt.NDArray[np.uint8]
    """(img_size, img_size, 3) RGB."""
    caption: str


def read_training_pairs(
    shards: Iterable[SourceShard],
    preprocess: PreprocessConfig,
    group_pattern: str = "",
    is_wanted: Callable[[str], bool] = lambda group: True,
) -> Iterator[TrainingPair]:
    """Pairs of shards in order; what cannot be used is counted by reason and logged.

    Args:
        shards: in img2dataset layout, as tokenization reads them (``sources.pairs``).
        preprocess: how pictures become network input.
        group_pattern: as ``PairDataConfig.group_pattern``.
        is_wanted: of a group (``group_of``); pairs of others are passed over undecoded.
    """
    refused: Counter[str] = Counter()
    for shard in shards:
        for item in read_pairs(read_shard(shard), shard.name):
            group = group_of(shard.name, item.key, group_pattern)
            if isinstance(item, RawDocument) and not is_wanted(group):
                continue
            pair = decoded_pair(item, preprocess, group)
            if isinstance(pair, TrainingPair):
                yield pair
            else:
                refused[pair] += 1
    if refused:
        reasons = " ".join(f"{reason}={count}" for reason, count in sorted(refused.items()))
        logger.warning("refused=%d %s", refused.total(), reasons)


def decoded_pair(
    item: RawDocument | QuarantineRecord, preprocess: PreprocessConfig, group: str
) -> TrainingPair | Reason:
    """The pair of one source item, or the reason why there is none."""
    if isinstance(item, QuarantineRecord):
        return item.reason
    (raw,) = item.images
    (caption,) = (segment.text for segment in item.segments if isinstance(segment, TextSegment))
    if not caption.strip():
        return Reason.CAPTION_EMPTY
    try:
        image = load_image(raw.data, preprocess)
    except ImageError as error:
        return error.reason
    return TrainingPair(item.key, group, np.asarray(image), caption.strip())


def group_of(shard: str, key: str, group_pattern: str) -> str:
    """The group of a sample: what is left of its key without the matches of the pattern, wherever it stands;
    without a pattern its shard's name, a tab and its key, since every shard may count its samples from zero.
    """
    return re.sub(group_pattern, "", key) if group_pattern else f"{shard}\t{key}"


def is_held_out(group: str, fraction: float) -> bool:
    """Whether a group belongs to the held-out share: a property of its name alone, the same in every run."""
    digest = blake2b(group.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split_pairs(
    data: PairDataConfig, shards: Sequence[SourceShard] | None = None
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training pairs, and of each held-out group the first pair (by key).

    ``shards`` are those of ``data``, where they were looked for already. Warns if many pairs share a group,
    of which an epoch draws one.

    Raises:
        ValueError, FileNotFoundError: no shard matches, or nothing is left for one of the two.
    """
    shards = data.shards() if shards is None else shards
    train: list[TrainingPair] = []
    kept: dict[str, TrainingPair] = {}
    for pair in read_training_pairs(shards, data.preprocess, data.group_pattern):
        if not is_held_out(pair.group, data.held_out_fraction):
            train.append(pair)
        elif pair.group not in kept or pair.key < kept[pair.group].key:
            kept[pair.group] = pair
    if not train or not kept:
        raise ValueError(
            f"data.held_out_fraction {data.held_out_fraction} leaves {len(train)} pairs for training and "
            f"{len(kept)} for evaluation"
        )
    if data.group_pattern:
        _check_groups(data.group_pattern, train)
    return train, [kept[group] for group in sorted(kept)]


def _check_groups(group_pattern: str, train: list[TrainingPair]) -> None:
    """Warn if the pattern puts together what hardly are variants: equal keys of several shards, or very
    many."""
    num_keys, num_groups = len({pair.key for pair in train}), len({pair.group for pair in train})
    if num_keys < len(train) or num_groups * MANY_VARIANTS < len(train):
        logger.warning(
            "data.group_pattern %r: %d pairs with %d different keys make %d groups, and an epoch has one "
            "of each; if these are no variants of one picture, give every sample a key of its own",
            group_pattern, len(train), num_keys, num_groups,
        )  # fmt: skip


def read_held_out(shards: Iterable[SourceShard], data: PairDataConfig) -> list[TrainingPair]:
    """The first ``data.held_out_limit`` held-out groups of the shards, one pair of each; others stay
    undecoded."""
    kept: dict[str, TrainingPair] = {}
    fraction = data.held_out_fraction
    for pair in read_training_pairs(
        shards, data.preprocess, data.group_pattern, lambda g: is_held_out(g, fraction)
    ):
        kept.setdefault(pair.group, pair)
        if len(kept) == data.held_out_limit:
            break
    if not kept:
        raise ValueError(f"data.held_out_fraction {fraction} leaves no pair for evaluation")
    return list(kept.values())


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one step on one rank."""

    images: npt.NDArray[np.uint8]
    """(B, img_size, img_size, 3)."""
    captions: list[str]


class PairBatches:
    """Batches of pairs in memory; each epoch holds one random pair of every group, in random order."""

    def __init__(
        self, pairs: list[TrainingPair], batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Batches of ``batch_size`` for this rank of ``world_size``.

        Raises:
            ValueError: fewer groups than one global batch needs.
        """
        members: dict[str, list[int]] = {}
        for index, pair in enumerate(pairs):
            members.setdefault(pair.group, []).append(index)
        self._pairs = pairs
        self._members = list(members.values())
        self._global_batch = batch_size * world_size
        self._slice = slice(rank * batch_size, (rank + 1) * batch_size)
        self._seed = seed
        if len(members) < self._global_batch:
            raise ValueError(
                f"{len(members)} groups of pairs are fewer than one batch of {self._global_batch} over all "
                "ranks: lower batch_size or give more shards"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches only."""
        return len(self._members) // self._global_batch

    def figures(self) -> dict[str, float]:
        """None: what cannot be used is told when the pairs are read."""
        return {}

    def batch(self, step: int) -> PairBatch:
        """Batch of ``step`` (0-based over the whole run) for this rank."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._members))
        draws = rng.random(len(self._members))
        start = place * self._global_batch
        groups = order[start : start + self._global_batch][self._slice]
        chosen = [self._members[g][int(draws[g] * len(self._members[g]))] for g in groups]
        return PairBatch(
            np.stack([self._pairs[i].image for i in chosen]), [self._pairs[i].caption for i in chosen]
        )
