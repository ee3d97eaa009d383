"""The exported tokenizer names the added ids and leaves text as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers

from schemas.vocabulary import VocabularyLayout
from tests.trainer.runs import TEXT_IDENTITY, trained_export
from tokenizer.text_tokenizer import TextTokenizer
from trainer.huggingface_tokenizer import grown_tokenizer
from trainer.prompt import encode_prompt

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "text_tokenizer"


def test_added_ids_are_decoded_and_text_is_unchanged(tmp_path: Path) -> None:
    ours = TextTokenizer(SAMPLE)
    layout = ours.layout
    grown_tokenizer(SAMPLE, layout, TEXT_IDENTITY).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == layout.size
    codes = np.array([42, *range(31)], np.uint16)
    ids = encode_prompt(["A small dog.", codes], ours, layout)
    text = theirs.decode(ids)
    assert text.endswith("".join(["<img>", "<img_00042>", *(f"<img_{c:05d}>" for c in range(31)), "</img>"]))
    assert "A small dog." in text
    assert theirs("<img_08191></img>", add_special_tokens=False).input_ids == [
        layout.img_start_id - 1, layout.img_end_id
    ]  # fmt: skip
    plain = 'Two lines,\nnumbers 12 and a quote "x".'
    assert theirs(plain, add_special_tokens=False).input_ids == ours.encode_batch([plain])[0].tolist()


def test_exporting_again_from_the_export_changes_nothing(tmp_path: Path) -> None:
    layout = TextTokenizer(SAMPLE).layout
    grown_tokenizer(SAMPLE, layout, TEXT_IDENTITY).save_pretrained(tmp_path / "a")
    grown_tokenizer(tmp_path / "a", layout, TEXT_IDENTITY).save_pretrained(tmp_path / "b")
    first, second = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in "ab")
    assert first.get_vocab() == second.get_vocab()


def test_a_model_with_more_rows_than_its_tokenizer_has_ids(tmp_path: Path) -> None:
    """``base_vocabulary`` of the mixture: codes begin behind the model's rows, and decode from there."""
    layout = VocabularyLayout(TextTokenizer(SAMPLE).base_size + 100)
    grown_tokenizer(SAMPLE, layout, TEXT_IDENTITY).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == layout.size
    assert theirs.convert_tokens_to_ids(["<img_00000>", "<img>"]) == [
        layout.image_code_offset, layout.img_start_id
    ]  # fmt: skip
    assert (
        theirs("a dog", add_special_tokens=False).input_ids == TextTokenizer(SAMPLE).encode("a dog").tolist()
    )


def foreign_tokenizer(folder: Path) -> Path:
    """Four words, which would fit into any model."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "foreign": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    foreign = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    foreign.save_pretrained(folder)
    return folder


def test_another_tokenizer_or_none_is_refused(tmp_path: Path) -> None:
    foreign, layout = foreign_tokenizer(tmp_path / "foreign"), TextTokenizer(SAMPLE).layout
    message = rf"foreign \(\w+\) is not the one .* packed with: samples \({TEXT_IDENTITY.sha256[:12]}\); give"
    with pytest.raises(ValueError, match=message):
        grown_tokenizer(foreign, layout, TEXT_IDENTITY)
    with pytest.raises(ValueError, match=message):
        trained_export(tmp_path, text_tokenizer=str(foreign))
    other = replace(TEXT_IDENTITY, sha256="ab" * 32)
    grown_tokenizer(SAMPLE, layout, TEXT_IDENTITY).save_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match=r"export .* is not the one"):
        grown_tokenizer(tmp_path / "export", layout, other)
    with pytest.raises(ValueError, match="the model was trained with 300"):
        grown_tokenizer(SAMPLE, VocabularyLayout(300), TEXT_IDENTITY)
    with pytest.raises(FileNotFoundError, match="nowhere: no tokenizer for transformers"):
        grown_tokenizer(tmp_path / "nowhere", VocabularyLayout(300), TEXT_IDENTITY)
