"""Bash-like brace patterns: ``{00000..00099}``, ``{a,b}``, with a bound on what a typing error may cost."""

import itertools
import re
from collections.abc import Iterable, Iterator

MAX_EXPANSION = 1_000_000
"""Five billion pairs are 500,000 shards of 10,000."""
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(\d{1,18}))?")


def expand_braces(pattern: str) -> list[str]:
    """All strings of a pattern, in order; the last brace varies fastest.

    Args:
        pattern: ``{00..11}`` (zero-padded when an end is), ``{0..9..3}``, ``{9..0}``, ``{a,b}``, nested.

    Raises:
        ValueError: when a brace is not closed, holds neither range nor list, or gives more than 1 million.
    """
    expanded: list[str] = []
    try:
        for path in _expand(pattern):
            expanded.append(path)
            if len(expanded) > MAX_EXPANSION:
                raise ValueError(f"expands to more than {MAX_EXPANSION} names")
    except ValueError as error:
        raise ValueError(f"{pattern}: {error}") from None
    return expanded


def _expand(text: str) -> Iterator[str]:
    start = text.find("{")
    if start < 0:
        if "}" in text:
            raise ValueError("unbalanced braces")
        yield text
        return
    end, commas = _match_brace(text, start)
    for choice in _choices(text, start, end, commas):
        for middle in _expand(choice):
            for rest in _expand(text[end + 1 :]):
                yield text[:start] + middle + rest


def _match_brace(text: str, start: int) -> tuple[int, list[int]]:
    """Where the brace that opens at ``start`` closes, and the commas that separate its choices."""
    depth = 0
    commas: list[int] = []
    for position in range(start, len(text)):
        character = text[position]
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position, commas
        if character == "," and depth == 1:
            commas.append(position)
    raise ValueError("unbalanced braces")


def _choices(text: str, start: int, end: int, commas: list[int]) -> Iterable[str]:
    if commas:
        bounds = [start, *commas, end]
        return [text[left + 1 : right] for left, right in itertools.pairwise(bounds)]
    body = text[start + 1 : end]
    span = _RANGE.fullmatch(body)
    if span is None:
        raise ValueError(f"'{{{body}}}' is neither a range such as 000..099 nor a list such as a,b")
    first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
    if step == 0:
        raise ValueError(f"'{{{body}}}' has step 0")
    if abs(last - first) // step >= MAX_EXPANSION:
        raise ValueError(f"expands to more than {MAX_EXPANSION} names")
    ends = (span[1].lstrip("-"), span[2].lstrip("-"))
    is_padded = any(digits.startswith("0") and len(digits) > 1 for digits in ends)
    width = max(len(span[1]), len(span[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)
