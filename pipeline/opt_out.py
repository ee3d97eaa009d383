"""Whether a web server asks that its pictures are not used: what ``X-Robots-Tag`` headers say, and to whom.

img2dataset reads a header as ``AGENT: directives`` wherever it holds a colon, and so misses the opt-out in
``noai, max-snippet: -1``. Here a colon belongs to a directive where that takes a value.
"""

from collections.abc import Iterable
from dataclasses import dataclass

DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""``none`` stands for ``noindex, nofollow``."""
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})


class OptOutError(OSError):
    """The answer says that it is not to be used."""


@dataclass(frozen=True)
class OptOut:
    """What opting out means for one downloader. Small and capital letters are the same."""

    user_agent_token: str
    """The name by which a header may address us."""

    def check(self, headers: Iterable[str]) -> None:
        """Raise OptOutError if one of the ``X-Robots-Tag`` headers opts out, for us or for everybody."""
        for header in headers:
            agent = ""
            for entry in header.lower().split(","):
                name, colon, value = (part.strip() for part in entry.partition(":"))
                directive = name
                if colon and name not in _WITH_VALUE:
                    agent, directive = name, value
                if directive in DIRECTIVES and agent in ("", "*", self.user_agent_token.lower()):
                    raise OptOutError(f"X-Robots-Tag: {directive}")
