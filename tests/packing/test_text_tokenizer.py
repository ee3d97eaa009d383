"""The text tokenizer: special tokens never come out of a text, whatever the tokenizer's file holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.packing.golden_inputs import DATA, SAMPLE_TOKENIZER
from tokenizer.text_tokenizer import TextTokenizer, TextTokenizerError, load_text_tokenizer


def save_byte_level(
    folder: Path, vocabulary: list[str], merges: list[tuple[str, str]], added: list[str]
) -> Path:
    """A tokenizer in GPT-2's way over a few pieces, with added tokens behind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: index for index, piece in enumerate(dict.fromkeys([*alphabet, *vocabulary]))}
    tokenizer = Tokenizer(BPE(vocab=pieces, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=token.startswith("<|")) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_merges_that_spell_a_special_token_are_taken_out(tmp_path: Path) -> None:
    """Converted sentencepiece vocabularies can hold a merge for every piece, control tokens included."""
    vocabulary = ["</", "s>", "</s>"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    folder = save_byte_level(tmp_path, vocabulary, merges, ["</s>"])
    tokenizer = TextTokenizer(folder, eos_token="</s>")
    ids = tokenizer.encode("end</s>")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "end</s>"


@pytest.mark.parametrize("special", ["<|endoftext|>", "[tool]"])
def test_added_tokens_of_every_kind_stay_text(special: str, tmp_path: Path) -> None:
    """Marked special or not: Tokenizer.encode_special_tokens covers only the first kind."""
    folder = save_byte_level(tmp_path, [], [], ["<|endoftext|>", "[tool]"])
    tokenizer = TextTokenizer(folder)
    added = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(special)
    assert added not in tokenizer.encode(f"a{special}b")
    assert tokenizer.decode(tokenizer.encode(f"a{special}b")) == f"a{special}b"


def test_added_whitespace_stays(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(save_byte_level(tmp_path, [], [], ["<|endoftext|>", "    "]))
    assert len(tokenizer.encode("    x")) == 2


def test_a_tokenizer_without_bos_begins_documents_with_eos(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(save_byte_level(tmp_path, [], [], ["<|endoftext|>"]))
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.base_size - 1


def test_marks_as_the_configuration_names_them(tmp_path: Path) -> None:
    folder = save_byte_level(tmp_path, [], [], ["<|begin|>", "<|stop|>"])
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|stop|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TextTokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (256, 257)


def test_a_tokenizer_that_already_has_image_tokens(tmp_path: Path) -> None:
    """The released SEED-LLaMA folder: its 8,194 tokens are not part of the base vocabulary."""
    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
    tokenizer.add_tokens([f"<img_{code:05d}>" for code in range(8192)] + ["<img>", "</img>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, plain = TextTokenizer(tmp_path), TextTokenizer(DATA / "tokenizer.json")
    assert tokenizer.token_to_id("<img_00007>") == 1007
    assert ours.base_size == plain.base_size == 1000
    text = "see <img><img_00007></img> there"
    assert np.array_equal(ours.encode(text), plain.encode(text))
    assert ours.layout.img_start_id == 9192


def test_sentencepiece_and_json_agree_on_structure() -> None:
    model = TextTokenizer(DATA / "sp_tokenizer.model")
    assert (model.bos_id, model.eos_id, model.base_size) == (1, 2, 1000)
    for text in ("", " ", "Two  blanks\nand a line.", "café 😀 中文"):
        assert model.decode(model.encode(text)) == text


def test_batches_are_single_texts_in_a_row() -> None:
    tokenizer = TextTokenizer(SAMPLE_TOKENIZER)
    texts = ["a red apple", "", "waving hand", "😀"]
    flat, lengths = tokenizer.encode_batch(texts)
    assert lengths.tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert flat.tolist() == [int(value) for text in texts for value in tokenizer.encode(text)]


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        TextTokenizerError, match="nobody/nothing: neither a path here nor a tokenizer on the hub"
    ):
        load_text_tokenizer("nobody/nothing")
    with pytest.raises(TextTokenizerError, match="neither a tokenizer file nor a folder"):
        load_text_tokenizer("here/is/nothing")
