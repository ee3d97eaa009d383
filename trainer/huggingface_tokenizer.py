"""The text tokenizer of an exported model, with names for the added ids, so that others can decode."""

from pathlib import Path
from typing import Any

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout


def added_names() -> list[str]:
    """Written forms of the 8,194 added ids in their order, as the released tokenizer has them."""
    return [*(f"<img_{code:05d}>" for code in range(CODEBOOK_SIZE)), "<img>", "</img>"]


def grown_tokenizer(source: Path, layout: VocabularyLayout) -> Any:
    """The ``transformers`` tokenizer of ``source`` with the added ids as special tokens; ``save_pretrained``
    writes it into an export.

    A model may have more text rows than its tokenizer has ids (``text_tokenizer.base_vocabulary`` of the
    mixture); the rows between get names, so that the added ids stand where the model has them.

    Args:
        source: a Hugging Face tokenizer folder, the one that the data were packed with.
        layout: of the exported model's vocabulary.

    Raises:
        FileNotFoundError: when ``source`` is no tokenizer folder.
        ValueError: when it has more ids than the model, or others.
    """
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"text_tokenizer {source}: no tokenizer for transformers in a folder of that name, nor in the"
            " cache of the hub; give the one that the mixture names"
        ) from error
    names = added_names()
    if len(tokenizer) <= layout.base_size:
        unused = [f"<unused_text_id_{number}>" for number in range(len(tokenizer), layout.base_size)]
        tokens = [AddedToken(name, special=True, normalized=False) for name in unused + names]
        tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(layout.image_code_offset, layout.size)):
        raise ValueError(
            f"{source} has {len(tokenizer)} ids, the model was trained with {layout.base_size} and the added "
            "ones behind; give the tokenizer that its mixture names"
        )
    return tokenizer
