"""Bash-like brace patterns: ``{00000..00099}``, ``{a,b}``, with a bound on what a typing error may cost."""

import re
from collections.abc import Iterable, Iterator

MAX_EXPANSION = 2_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(\d{1,18}))?")


def expand_braces(pattern: str) -> list[str]:
    """All strings of a pattern, in order; the last brace varies fastest.

    Args:
        pattern: ``{00..11}`` (zero-padded when an end is), ``{0..9..3}``, ``{9..0}``, ``{a,b}``, nested.

    Raises:
        ValueError: when a brace is not closed, holds neither range nor list, or gives more than 2 million.
    """
    expanded: list[str] = []
    for path in _expand(pattern, pattern):
        expanded.append(path)
        if len(expanded) > MAX_EXPANSION:
            raise ValueError(f"{pattern}: expands to more than {MAX_EXPANSION} names")
    return expanded


def _expand(rest: str, pattern: str) -> Iterator[str]:
    if "{" not in rest and "}" not in rest:
        yield rest
        return
    innermost = _BRACES.search(rest)
    if innermost is None:
        raise ValueError(f"{pattern}: unbalanced braces")
    for choice in _choices(innermost[1], pattern):
        yield from _expand(rest[: innermost.start()] + choice + rest[innermost.end() :], pattern)


def _choices(body: str, pattern: str) -> Iterable[str]:
    span = _RANGE.fullmatch(body)
    if span is None:
        if "," not in body:
            raise ValueError(
                f"{pattern}: '{{{body}}}' is neither a range such as 000..099 nor a list such as a,b"
            )
        return body.split(",")
    first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
    if step == 0:
        raise ValueError(f"{pattern}: '{{{body}}}' has step 0")
    ends = (span[1].lstrip("-"), span[2].lstrip("-"))
    is_padded = any(end.startswith("0") and len(end) > 1 for end in ends)
    width = max(len(span[1]), len(span[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)
