"""Member names: which are refused, which are junk, and how the others split into key and extension.

The split is webdataset's: the key is everything before the first dot of the base name, folder included;
the extension is the rest, lower-cased (`photo.v1.jpg` -> `photo`, `v1.jpg`). It differs in one place:
`folder/.hidden.jpg`, which webdataset reads as key `folder/`, is ignored here like every hidden file.
Names are never used as paths; unsafe ones are refused because other tools would.
"""

from schemas.quarantine import Reason

MAX_NAME_BYTES = 4096


def split_name(raw_name: bytes) -> tuple[str, str] | tuple[Reason, str]:
    """(key, extension), or (reason, detail) for a name that gives no sample.

    Reasons: ``UNSAFE_MEMBER_NAME`` (absolute, ``..``, control characters, not UTF-8, longer than 4096 bytes)
    and ``MEMBER_IGNORED`` (hidden and AppleDouble files, webdataset's ``__meta__`` names, no extension).
    """
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        return Reason.UNSAFE_MEMBER_NAME, "the name is not UTF-8"
    if not name.isprintable() or name[:1] in "/\\" or ".." in name or ":" in name[:2]:
        fault = _unsafe(name)
        if fault:
            return Reason.UNSAFE_MEMBER_NAME, fault
    if len(raw_name) > MAX_NAME_BYTES:
        return Reason.UNSAFE_MEMBER_NAME, f"the name has {len(raw_name)} bytes, limit {MAX_NAME_BYTES}"
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot == start:
        return Reason.MEMBER_IGNORED, "hidden file"
    if name[:2] == "__" or "/__MACOSX/" in name:
        first = name.partition("/")[0]
        if "__MACOSX/" in name or first.endswith("__"):
            return Reason.MEMBER_IGNORED, "metadata of another tool"
    if dot < 0:
        return Reason.MEMBER_IGNORED, "no extension"
    return name[:dot], name[dot + 1 :].lower()


def _unsafe(name: str) -> str:
    if not name:
        return "the name is empty"
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        return "control characters in the name"
    if name[0] in "/\\" or (name[1:2] == ":" and name[2:3] in ("/", "\\")):
        return "absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "path with '..'"
    return ""
