"""CIDEr, BLEU and VQA accuracy against independent implementations.

``tests/data/evaluation_scores.json`` holds what pycocoevalcap 1.2 (CIDEr-D, BLEU-1..4), sacrebleu 2.6
(BLEU-4, no smoothing) and the official VQA v2 script gave for captions made of Noto emoji names and for
hand-written answers.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.answers import normalise_answer, vqa_accuracy
from trainer.evaluation.captions import bleu, caption_words, cider

EXPECTED = json.loads((Path(__file__).parents[2] / "data" / "evaluation_scores.json").read_text())
CANDIDATES = [row["candidate"] for row in EXPECTED["captions"]]
REFERENCES = [row["references"] for row in EXPECTED["captions"]]
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=9)


def test_cider_equals_pycocoevalcap() -> None:
    assert cider(CANDIDATES, REFERENCES) == pytest.approx(
        [row["cider"] for row in EXPECTED["captions"]], abs=1e-6
    )


def test_bleu_equals_pycocoevalcap_and_sacrebleu() -> None:
    scores = bleu(CANDIDATES, REFERENCES)
    assert scores == pytest.approx(EXPECTED["bleu"], abs=1e-4)
    assert scores[3] == pytest.approx(EXPECTED["bleu_sacrebleu"], abs=1e-4)


@pytest.mark.parametrize("row", EXPECTED["vqa"], ids=lambda row: repr(row["answer"]))
def test_vqa_accuracy_equals_the_official_script(row: dict) -> None:
    assert 100 * vqa_accuracy(row["answer"], row["annotators"]) == pytest.approx(row["accuracy"], abs=1e-4)


@given(st.lists(WORDS, min_size=2, max_size=6))
def test_perfect_captions_score_best(captions: list[list[str]]) -> None:
    assert bleu(captions, [[words] for words in captions])[0] == pytest.approx(100)
    perfect = cider(captions, [[words] for words in captions])
    assert all(0 <= score <= 10 + 1e-9 for score in perfect)
    assert all(
        a >= b - 1e-9 for a, b in zip(perfect, cider(captions[::-1], [[w] for w in captions]), strict=True)
    )


@given(WORDS, WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_more_references_never_lower_the_matches(
    candidate: list[str], first: list[str], others: list[list[str]]
) -> None:
    alone = bleu([candidate], [[candidate, first]])[0]
    assert alone == pytest.approx(100)
    assert bleu([candidate], [[candidate, first, *others]])[0] == pytest.approx(100)


def test_words_of_captions() -> None:
    text = "A man's T-shirt: \"don't\" (2.5 m), U.S. flag!  "
    assert caption_words(text) == ["a", "man", "'s", "t-shirt", "don't", "2.5", "m", "u.s", "flag"]


def test_answers_are_normalised() -> None:
    assert normalise_answer("The Two dogs, dont!") == "2 dogs don't"


def test_pairs_must_fit() -> None:
    with pytest.raises(ValueError, match="1 captions for 2 sets"):
        cider([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="no reference"):
        bleu([["a"]], [[]])
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("a", [])


def test_the_stored_scores_are_those_of_the_packages() -> None:
    """Where they are installed (``pip install pycocoevalcap==1.2 sacrebleu``), compute the stored figures
    again. Words stand between blanks already: no Java tokenizer is needed."""
    cider_module = pytest.importorskip("pycocoevalcap.cider.cider")
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu")
    sacrebleu = pytest.importorskip("sacrebleu")
    candidates = [" ".join(words) for words in CANDIDATES]
    references = [[" ".join(words) for words in options] for options in REFERENCES]
    given = dict(enumerate(references)), {index: [text] for index, text in enumerate(candidates)}
    _, scores = cider_module.Cider().compute_score(*given)
    assert scores.tolist() == pytest.approx([row["cider"] for row in EXPECTED["captions"]], abs=1e-9)
    totals, _ = bleu_module.Bleu(4).compute_score(*given, verbose=0)
    assert [100 * total for total in totals] == pytest.approx(EXPECTED["bleu"], abs=1e-6)
    longest = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(longest)]
    theirs = sacrebleu.corpus_bleu(candidates, streams, smooth_method="none", tokenize="none", force=True)
    assert theirs.score == pytest.approx(EXPECTED["bleu_sacrebleu"], abs=1e-6)
