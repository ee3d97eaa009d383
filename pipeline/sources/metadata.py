"""The `.json` of a sample: read with bounds, and reduced to the fields that are kept.

JSON that cannot be used never costs the sample: the caller records it and goes on without.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from schemas.quarantine import Reason, RefusedError

ALL_FIELDS = "*"


def parse_metadata(data: bytes, max_bytes: int, flag: str = "") -> dict[str, Any]:
    """The JSON object in ``data``: UTF-8, a byte order mark allowed, NaN and Infinity read as null.

    NaN is what img2dataset writes for a missing number of its source table. Of repeated keys the last wins.
    ``flag`` is the one that sets the limit, for the detail of a refusal.

    Raises:
        RefusedError: ``metadata_too_large`` above ``max_bytes``; ``metadata_invalid_json`` for what is no
            JSON object, nested too deeply for the parser, or holds an integer of over 4300 digits.
    """
    if len(data) > max_bytes:
        named = f" ({flag})" if flag else ""
        raise RefusedError(Reason.METADATA_TOO_LARGE, f"{len(data)} bytes, limit {max_bytes}{named}")
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
    except RecursionError:
        raise RefusedError(Reason.METADATA_INVALID_JSON, "nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors too
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise RefusedError(Reason.METADATA_INVALID_JSON, "UTF-16: it must be UTF-8") from None
        raise RefusedError(Reason.METADATA_INVALID_JSON, str(error)[:200]) from None
    if not isinstance(value, dict):
        raise RefusedError(Reason.METADATA_INVALID_JSON, f"not a JSON object but {str(value)[:40]}")
    return value


def dump_fields(value: dict[str, Any], fields: Sequence[str]) -> str | None:
    """The chosen fields as one JSON object, the same text for the same values; None when there are none.

    Args:
        fields: names at the top level; ``("*",)`` keeps all. Fields that are null are left out.

    Raises:
        RefusedError: ``metadata_invalid_json`` for numbers outside JSON (1e999) below the top level.
    """
    names = value if ALL_FIELDS in fields else fields
    chosen = {name: value[name] for name in names if _is_stored(value.get(name))}
    if not chosen:
        return None
    try:
        text = json.dumps(chosen, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise RefusedError(Reason.METADATA_INVALID_JSON, str(error)[:200]) from None
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # "\ud800" is JSON but not text: keep it escaped
        return json.dumps(chosen, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text


def _is_stored(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
