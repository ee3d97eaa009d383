"""The text tokenizer: special tokens never come out of a text, whatever the tokenizer's file holds."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece

from tests.packing.golden_inputs import DATA, SAMPLE_TOKENIZER
from tokenizer.text_backend import TextTokenizerError
from tokenizer.text_tokenizer import TextTokenizer, load_text_tokenizer


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


SPECIAL = ("<s>", "</s>", "<img>", "</img>", "<img_00007>", "[tool]")
LETTERS = sorted({*"abc ", *"".join(SPECIAL)})


def save_whole_word(folder: Path, kind: str) -> Path:
    """A tokenizer whose model finds its special tokens in a text by their whole written form."""
    pieces = ["<unk>", *LETTERS, *(f"##{letter}" for letter in LETTERS), *SPECIAL]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if kind == "sentencepiece":
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["".join(LETTERS), "a b c"] * 9), model_writer=model, vocab_size=64,
            hard_vocab_limit=False, user_defined_symbols=list(SPECIAL[2:]),
        )  # fmt: skip
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        return folder
    model_of: dict[str, Callable[[], object]] = {
        "unigram": lambda: Unigram([(piece, -1.0) for piece in pieces], unk_id=0),
        "wordpiece": lambda: WordPiece(vocabulary, unk_token="<unk>"),
        "bpe": lambda: BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True),
        "wordlevel": lambda: WordLevel(vocabulary, unk_token="<unk>"),
    }
    tokenizer = Tokenizer(model_of[kind]())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL[:2]))
    tokenizer.add_tokens([SPECIAL[-1]])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["unigram", "wordpiece", "bpe", "wordlevel", "sentencepiece"])
def whole_word(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(save_whole_word(tmp_path_factory.mktemp(request.param), request.param))


@given(parts=st.lists(st.sampled_from([*SPECIAL, *"abc", " "]), max_size=12))
@settings(deadline=None, max_examples=60)
def test_no_kind_of_model_spells_a_special_token(whole_word: TextTokenizer, parts: list[str]) -> None:
    raw = whole_word._backend.named_ids
    if (folder := Path(whole_word.name) / "tokenizer.model").exists():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder))
        raw = {token: processor.piece_to_id(token) for token in SPECIAL}
    text = "".join(parts)
    assert not {raw[token] for token in SPECIAL} & set(whole_word.encode(text).tolist())


def test_a_mark_that_is_the_unknown_token_is_refused(tmp_path: Path) -> None:
    folder = save_whole_word(tmp_path, "wordpiece")
    with pytest.raises(TextTokenizerError, match=r"'<unk>' is a document mark .* text_tokenizer\.bos_token"):
        TextTokenizer(folder, bos_token="<unk>")


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
        TextTokenizerError,
        match="nobody/nothing: neither a path here nor a tokenizer on the Hugging Face hub",
    ):
        load_text_tokenizer("nobody/nothing")
    with pytest.raises(TextTokenizerError, match="neither a tokenizer file nor a folder"):
        load_text_tokenizer("here/is/nothing")
