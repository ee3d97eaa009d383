"""A trained model for generation and evaluation, from an exported folder or a checkpoint."""

from pathlib import Path

import torch

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout
from tokenizer.checkpoint import load_tokenizer
from trainer.export import checkpoint_marks, load_checkpoint
from trainer.huggingface import (
    HuggingFaceWeights,
    MixtureMarks,
    exported_codebook,
    exported_layout,
    exported_marks,
    read_config,
)
from trainer.llama import Llama
from trainer.lora import merge_adapters
from trainer.weights import fill_parameters

RELEASE = "seed-2"
"""The image tokenizer that generation and evaluation take unless told."""


def load_model(folder: Path) -> tuple[Llama, VocabularyLayout]:
    """Model in fp32 on the CPU, in evaluation mode, adapters merged, and its vocabulary.

    Args:
        folder: an export of ours (``config.json``) or a checkpoint (``progress.json``).

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: for a Hugging Face model that knows no images.
    """
    if (folder / "progress.json").is_file():
        model, layout, lora = load_checkpoint(folder)
        if lora.rank:
            merge_adapters(model)
        return model.eval(), layout
    shape = read_config(folder)
    exported = exported_layout(folder)
    if exported is None:
        raise ValueError(f"{folder}/config.json names no seed_vocabulary: the model never saw images")
    layout = exported
    with torch.device("meta"):
        model = Llama(shape.with_vocabulary(layout))
    model.to_empty(device="cpu")
    model.tie()
    fill_parameters(model, HuggingFaceWeights(folder, layout, seed=0))
    return model.eval(), layout


def load_marks(folder: Path) -> MixtureMarks | None:
    """Marks of a model's mixture, from an export of ours or a checkpoint; None if unknown."""
    if (folder / "progress.json").is_file():
        return checkpoint_marks(folder)
    return exported_marks(folder)


def check_worth_fetching(folder: Path, tokenizer: str, option: str) -> None:
    """Raise ValueError if seed-2, the default and 4.6 GB to fetch, cannot have made a model's codes.

    Args:
        folder: of the model.
        tokenizer: the one asked for; any other than seed-2 passes, for `check_codebook` to judge.
        option: how that is asked for, up to the value: ``--tokenizer `` or ``tokenizer=``.
    """
    is_model = (folder / "config.json").is_file() or (folder / "progress.json").is_file()
    marks = load_marks(folder) if is_model else None  # whoever reads the model says what else it is
    if tokenizer != RELEASE or marks is None or not marks.codebook:
        return
    found = f"{folder} was trained on image codes that {option}{RELEASE} did not make"
    if marks.codebook == load_tokenizer("sample").codebook_hex:
        raise ValueError(f"{found}: give {option}sample")
    if marks.num_codes != CODEBOOK_SIZE:
        raise ValueError(
            f"{found}: give {option}FOLDER, the tokenizer of its training data, which has "
            f"{marks.num_codes:,} codes"
        )


def check_codebook(folder: Path, codebook: str, what: str) -> None:
    """Raise ValueError if a model or adapter learned codes of another codebook than ``what`` has."""
    if (folder / "progress.json").is_file():
        marks = checkpoint_marks(folder)
        trained = marks.codebook if marks else ""
    else:
        trained = exported_codebook(folder)
    if "" not in (trained, codebook) and trained != codebook:
        raise ValueError(
            f"{folder} was trained on image codes of codebook {trained[:12]}..., {what} has "
            f"{codebook[:12]}..., where the same code means something else: use the tokenizer of the "
            "model's training data"
        )
