"""What a text tokenizer needs of the library that it wraps."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

SEED_MARKERS = ("<img>", "</img>")


class TextTokenizerError(ValueError):
    """A text tokenizer that cannot be loaded or used; the message names it and the remedy."""


class TextBackend(Protocol):
    """Text to ids and back by one library."""

    base_size: int
    named_ids: dict[str, int]
    """Ids of special tokens by their written form."""

    def hide(self, marks: AbstractSet[int]) -> None:
        """Make the encoder, without these ids and without all other special ones.

        Raises:
            TextTokenizerError: if texts would still yield one of them.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of each text in turn, so that never all stand in memory as Python integers."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...
