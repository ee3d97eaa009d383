"""From the bytes of a caption to its text, by rules that are the same for every source.

The text is kept as it was stored: no normalisation, markup and markers such as ``<img>`` stay plain text,
CR LF stays. Only a UTF-8 byte order mark and the surrounding white space are taken away.
"""

from typing import Literal

from schemas.quarantine import Reason, RefusedError

OnBadEncoding = Literal["quarantine", "replace"]
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def decode_caption(
    data: bytes, max_bytes: int, on_bad_encoding: OnBadEncoding, section: str = "pairs"
) -> str:
    """The caption in ``data``.

    Args:
        data: UTF-8, with or without byte order mark.
        max_bytes: longest caption, in bytes before decoding.
        on_bad_encoding: ``"replace"`` puts U+FFFD for what is no UTF-8, and for NUL.
        section: under which the flags of these settings stand, for the detail of a refusal.

    Raises:
        RefusedError: ``caption_too_long``; ``caption_bad_encoding`` for anything but strict UTF-8 (lone
            surrogates and overlong forms included) and for NUL, which is what UTF-16 without a mark looks
            like and where C programs cut; ``caption_empty`` for nothing but white space.
    """
    if len(data) > max_bytes:
        raise RefusedError(
            Reason.CAPTION_TOO_LONG, f"{len(data)} bytes, limit {max_bytes} (--{section}.max-caption-bytes)"
        )
    try:
        text = data.removeprefix(_UTF8_BOM).decode("utf-8")
        fault = f"NUL at character {text.index(chr(0))}" if "\0" in text else ""
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "replace")
        kind = "UTF-16" if data.startswith(_UTF16_BOMS) else "not UTF-8"
        fault = f"{kind}: byte {data[error.start]:#04x} at {error.start}: {error.reason}"
    if fault:
        if on_bad_encoding == "quarantine":
            remedy = f"write it as UTF-8, or take U+FFFD for it (--{section}.on-bad-encoding replace)"
            raise RefusedError(Reason.CAPTION_BAD_ENCODING, f"{fault}; {remedy}")
        text = text.replace("\0", "\ufffd")
    text = text.strip()
    if not text:
        raise RefusedError(
            Reason.CAPTION_EMPTY, f"{len(data)} bytes of white space" if data else "zero bytes"
        )
    return text
