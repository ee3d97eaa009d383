"""Tables of scores for generated text: captions and short answers, from rows of a JSON-lines file."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.answers import normalise_answer, vqa_accuracy
from trainer.evaluation.captions import bleu, caption_words, cider
from trainer.evaluation.report import Tables


def caption_tables(rows: Sequence[Mapping[str, Any]]) -> Tables:
    """CIDEr-D (times 100, as papers print it) and BLEU of rows with ``caption`` and ``references``."""
    _check(rows, "caption", "references")
    candidates = [caption_words(row["caption"]) for row in rows]
    references = [[caption_words(text) for text in row["references"]] for row in rows]
    scores = cider(candidates, references)
    table = {"CIDEr-D": 100 * sum(scores) / len(scores)}
    table |= {f"BLEU-{order}": score for order, score in enumerate(bleu(candidates, references), start=1)}
    return {"captions": table | {"captions": len(rows)}}


def answer_tables(rows: Sequence[Mapping[str, Any]]) -> Tables:
    """VQA accuracy and exact match of rows with ``answer`` and ``annotators``.

    An exact match equals one of the annotators after normalisation: the figure for data with a single answer
    a question (GQA), where VQA accuracy, which leaves each annotator out in turn, is always 0.
    """
    _check(rows, "answer", "annotators")
    scores = [vqa_accuracy(row["answer"], row["annotators"]) for row in rows]
    matches = [
        normalise_answer(row["answer"]) in {normalise_answer(text) for text in row["annotators"]}
        for row in rows
    ]
    return {
        "answers": {
            "VQA accuracy %": 100 * sum(scores) / len(rows),
            "exact match %": 100 * sum(matches) / len(rows),
            "answers": len(rows),
        }
    }


def _check(rows: Sequence[Mapping[str, Any]], text: str, texts: str) -> None:
    """Refuse rows without the entries; the first bad row is named (1-based)."""
    if not rows:
        raise ValueError("nothing to evaluate: the file has no rows")
    for number, row in enumerate(rows, start=1):
        others = row.get(texts)
        if not isinstance(row.get(text), str) or not isinstance(others, list):
            raise ValueError(f"row {number}: expected a string {text!r} and a list of strings {texts!r}")
        if not others or not all(isinstance(other, str) for other in others):
            raise ValueError(f"row {number}: {texts!r} must hold at least one string, and strings only")
