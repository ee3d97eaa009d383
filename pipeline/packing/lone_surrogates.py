"""Halves of characters, which JSON may spell and no encoding has."""


def without_lone_surrogates(text: str) -> str:
    r"""The text with U+FFFD for halves of characters (``\ud800``)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
