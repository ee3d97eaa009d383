"""The text tokenizer of an exported model, with names for the added ids, so that others can decode."""

from pathlib import Path
from typing import Any

from schemas.packed_shard import TextTokenizerIdentity
from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout
from tokenizer.text_tokenizer import text_tokenizer_hashes

_GROWN_FROM = "seed_text_tokenizer_sha256"
"""Field of the exported ``tokenizer_config.json``: the identity of the tokenizer before it grew."""


def added_names() -> list[str]:
    """Written forms of the 8,194 added ids in their order, as the released tokenizer has them."""
    return [*(f"<img_{code:05d}>" for code in range(CODEBOOK_SIZE)), "<img>", "</img>"]


def grown_tokenizer(source: Path, layout: VocabularyLayout, identity: TextTokenizerIdentity) -> Any:
    """The ``transformers`` tokenizer of ``source`` with the added ids as special tokens; ``save_pretrained``
    writes it into an export.

    A model may have more text rows than its tokenizer has ids (``text_tokenizer.base_vocabulary`` of the
    mixture); the rows between get names, so that the added ids stand where the model has them.

    Args:
        source: a Hugging Face tokenizer folder, the one that the data were packed with, or an export of it.
        layout: of the exported model's vocabulary.
        identity: of the tokenizer that the data were packed with.

    Raises:
        FileNotFoundError: when ``source`` is no tokenizer folder.
        ValueError: when it is another tokenizer.
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
    found = text_tokenizer_hashes(str(source), identity.bos_id, identity.eos_id)
    if identity.sha256 not in (*found, tokenizer.init_kwargs.get(_GROWN_FROM)):
        raise ValueError(
            f"text_tokenizer {source} ({found[0][:12]}) is not the one that the data were packed with: "
            f"{identity.name} ({identity.sha256[:12]}); give that one"
        )
    tokenizer.init_kwargs[_GROWN_FROM] = identity.sha256
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
