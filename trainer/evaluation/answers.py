"""VQA accuracy: an answer counts fully when three of the other annotators gave it.

Same rules as the official VQA v2 evaluation: mean over leaving out each annotator of min(matches / 3, 1);
answers are normalised only when the annotators disagree. The prompt is the paper's.
"""

import re
from collections.abc import Sequence

PROMPT = "{image} Question: {question}\nBrief answer:"
"""The paper's prompt for visual question answering; ``{image}`` is the image span."""
MATCHES_FOR_FULL = 3
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
MAX_FULL_STOPS = 32
"""The official script passes a flag where the number of replacements belongs; so many are removed."""
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd "
    "how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock "
    "oughtn't shan't should've shouldn't that's there'd there're there's they'd they'll they're they've "
    "wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
    "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've "
    "somebody'll somebody's someone'd someone'll someone's something'd something'll "
)
_WITH_APOSTROPHE = {word.replace("'", ""): word for word in _CONTRACTIONS.split()} | {"twas": "'twas"}


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Accuracy 0..1 of one answer against those of (usually ten) annotators."""
    if not annotators:
        raise ValueError("vqa accuracy needs at least one annotated answer")
    answer, *expected = (_one_line(text) for text in (answer, *annotators))
    if len(set(expected)) > 1:
        answer, *expected = (normalise_answer(text) for text in (answer, *expected))
    matches = [text == answer for text in expected]
    scores = [min(1.0, (sum(matches) - own) / MATCHES_FOR_FULL) for own in matches]
    return sum(scores) / len(scores)


def normalise_answer(answer: str) -> str:
    """Lower case, no articles and punctuation, numbers as digits, apostrophes put back into contractions."""
    words = [_DIGITS.get(word, word) for word in _without_punctuation(_one_line(answer)).lower().split()]
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Marks beside a blank vanish, those between letters become blanks (all vanish if a number has a
    comma)."""
    has_number = _NUMBER_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_blank or has_number else " ")
    return _FULL_STOP.sub("", cleaned, count=MAX_FULL_STOPS)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
