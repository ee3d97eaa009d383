"""Documents in the MMC4 layout as open_flamingo's converter writes it: one ``.json`` a sample, images inside.

``text_list`` holds sentences; each entry of ``image_info`` a base64 picture (``image_base64``) and the
sentence it belongs to (``matched_text_index``). A picture stands before its sentence; several of one sentence
stand in the order of ``image_info``. Pictures that were not downloaded have no ``image_base64``. The
assignment is read as stored; ``similarity_matrix``, from which it can be computed again, is not needed.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from pipeline.sources.records import RawImage
from schemas.quarantine import Reason, RefusedError


def is_mmc4(value: Mapping[str, Any]) -> bool:
    """Whether a sample's JSON is in this layout."""
    return "text_list" in value and "image_info" in value


def read_mmc4_nodes(value: Mapping[str, Any]) -> tuple[list[str | RawImage | RefusedError], dict[str, Any]]:
    """The nodes of a document in reading order, and its metadata.

    Sentences between two pictures are joined by a blank into one run of text. The metadata has nothing of
    single pictures (``matched_sim``): it is settled before it shows which of them decode, and a list in it
    would not fit the pictures that are left.

    Raises:
        RefusedError: if the lists are not as the layout says, or no picture was downloaded.
    """
    sentences, pictures = value["text_list"], value["image_info"]
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, "'text_list' must be a list of strings")
    if not isinstance(pictures, list) or not all(isinstance(picture, dict) for picture in pictures):
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, "'image_info' must be a list of objects")
    if not any("image_base64" in picture for picture in pictures):
        raise RefusedError(Reason.DOC_NO_IMAGES, f"none of its {len(pictures)} images was downloaded")
    before: dict[int, list[Mapping[str, Any]]] = {}
    for picture in pictures:
        before.setdefault(_sentence_of(picture, len(sentences)), []).append(picture)
    nodes: list[str | RawImage | RefusedError] = []
    run: list[str] = []
    for index, sentence in enumerate(sentences):
        if index in before and run:
            nodes.append(" ".join(run))
            run = []
        nodes += [_picture(picture) for picture in before.get(index, ())]
        run.append(sentence)
    nodes.append(" ".join(run))
    return nodes, {name: entry for name, entry in value.items() if name not in _CONTENT_FIELDS}


_CONTENT_FIELDS = frozenset({"text_list", "image_info", "similarity_matrix"})


def _sentence_of(picture: Mapping[str, Any], num_sentences: int) -> int:
    index = picture.get("matched_text_index")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < num_sentences:
        shown = f"matched_text_index {str(index)[:20]} with {num_sentences} sentences"
        raise RefusedError(Reason.DOC_SCHEMA_ERROR, shown)
    return index


def _picture(picture: Mapping[str, Any]) -> RawImage | RefusedError:
    name = str(picture.get("image_name"))[:80]
    encoded = picture.get("image_base64")
    if not isinstance(encoded, str):
        return RefusedError(Reason.DOC_IMAGE_MISSING, f"{name} was not downloaded")
    try:
        return RawImage(base64.b64decode(encoded, validate=True), name.rpartition(".")[2])
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        return RefusedError(Reason.IMAGE_DECODE_ERROR, f"{name}: invalid base64: {error}")
