"""Scores of captions against references: CIDEr-D and corpus BLEU, without Java.

Both work on words. COCO's own tool splits with Stanford's PTB tokenizer (a Java program); ``caption_words``
splits by a rule that agrees with it on ordinary captions. Given the same words, the scores equal
pycocoevalcap's.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4
CIDER_SIGMA = 6.0
Words = Sequence[str]
_WORD = re.compile(r"[a-z0-9]+(?:[-.,'][a-z0-9]+)*(?='s\b)|'s\b|[^\W_]+(?:[-.,'][^\W_]+)*")


def caption_words(caption: str) -> list[str]:
    """Lower-cased words without punctuation; ``'s`` is a word of its own, hyphens and inner dots stay."""
    return _WORD.findall(caption.lower())


def ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """Counts of runs of ``order`` words."""
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 in percent (Papineni et al. 2002): clipped matches, brevity by the nearest
    reference.

    Of two references equally near in length the shorter counts. No smoothing: an order without a match makes
    its score and all higher ones 0.
    """
    _check_pairs(candidates, references)
    matches, totals = [0] * MAX_ORDER, [0] * MAX_ORDER
    length = reference_length = 0
    for words, options in zip(candidates, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(option) - len(words)), len(option)) for option in options)[1]
        for order in range(1, MAX_ORDER + 1):
            counts = ngrams(words, order)
            allowed: Counter[tuple[str, ...]] = Counter()
            for option in options:
                allowed |= ngrams(option, order)
            matches[order - 1] += (counts & allowed).total()
            totals[order - 1] += counts.total()
    brevity = min(1.0, math.exp(1 - reference_length / length)) if length else 0.0
    scores, log_sum = [], 0.0
    for order, (hit, total) in enumerate(zip(matches, totals, strict=True), start=1):
        log_sum += math.log(hit / total) if hit else -math.inf
        scores.append(100 * brevity * math.exp(log_sum / order))
    return scores


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each candidate, on the usual scale where humans score about 1 (Vedantam et al. 2015).

    The corpus score is the mean. Document frequencies come from these references: scores of different sets of
    images cannot be compared, and one image alone scores 0.
    """
    _check_pairs(candidates, references)
    frequency = Counter(
        gram
        for options in references
        for gram in {gram for option in options for gram in _all_ngrams(option)}
    )
    log_images = math.log(len(references))

    def weighted(words: Words) -> "_Weighted":
        return _Weighted(words, frequency, log_images)

    return [
        10 * math.fsum(_similarity(weighted(words), weighted(option)) for option in options) / len(options)
        for words, options in zip(candidates, references, strict=True)
    ]


class _Weighted:
    """The tf-idf vectors of one caption, one per order."""

    def __init__(self, words: Words, frequency: Counter[tuple[str, ...]], log_images: float) -> None:
        self.vectors: list[dict[tuple[str, ...], float]] = []
        for order in range(1, MAX_ORDER + 1):
            counts = ngrams(words, order)
            self.vectors.append(
                {
                    gram: count * (log_images - math.log(max(1, frequency[gram])))
                    for gram, count in counts.items()
                }
            )
        self.norms = [math.sqrt(math.fsum(value**2 for value in vector.values())) for vector in self.vectors]
        self.num_bigrams = max(0, len(words) - 1)
        """The reference implementation measures length in bigrams."""


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """Mean over orders of clipped cosine, times a Gaussian of the difference in length."""
    total = 0.0
    for mine, theirs, norm, other_norm in zip(
        candidate.vectors, reference.vectors, candidate.norms, reference.norms, strict=True
    ):
        if norm and other_norm:
            product = math.fsum(
                min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items()
            )
            total += product / (norm * other_norm)
    difference = candidate.num_bigrams - reference.num_bigrams
    return total / MAX_ORDER * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


def _all_ngrams(words: Words) -> Counter[tuple[str, ...]]:
    grams: Counter[tuple[str, ...]] = Counter()
    for order in range(1, MAX_ORDER + 1):
        grams += ngrams(words, order)
    return grams


def _check_pairs(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} captions for {len(references)} sets of references")
    empty = [index for index, options in enumerate(references) if not options]
    if empty:
        raise ValueError(f"no reference for caption {empty[0]} (and {len(empty) - 1} more)")
