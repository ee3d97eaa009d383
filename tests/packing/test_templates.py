"""Every template against sequences written out by hand; text stays text, images stay whole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packing.chat import ChatStyle
from pipeline.packing.draws import DocumentDraws, row_keys, stable_hash
from pipeline.packing.render import Piece, render, split_points
from pipeline.packing.templates import TEMPLATES, DocumentRefusedError, Refusal
from schemas.document import Document, ImageSegment, Role, TextSegment
from tests.packing.golden_inputs import DATA, SAMPLE_TOKENIZER, ScriptedDraws
from tokenizer.text_backend import TextTokenizerError
from tokenizer.text_tokenizer import TextTokenizer

BPE = TextTokenizer(SAMPLE_TOKENIZER)
SENTENCEPIECE = TextTokenizer(DATA / "sp_tokenizer.model")
LAYOUT = BPE.layout


def image(seed: int, role: Role | None = None) -> ImageSegment:
    return ImageSegment(np.random.default_rng(seed).integers(0, 8192, 32, dtype=np.uint16), role)


FIRST, SECOND, THIRD = (image(seed) for seed in range(3))
NAMES = {tuple(segment.codes.tolist()): name for segment, name in ((FIRST, "1"), (SECOND, "2"), (THIRD, "3"))}


def spell(document: Document, template: str, draws: ScriptedDraws | None = None, **changes: object) -> str:
    """The rendered document in one line: [what is learned], images as <img>number</img>."""
    function, settings_class = TEMPLATES[template]
    pieces = function(document, settings_class(**changes), draws or ScriptedDraws())
    ids, mask = render([pieces], BPE, LAYOUT).document(0)
    assert ids[0] == BPE.bos_id
    words, position = [], 0
    for end in [*np.flatnonzero(np.diff(mask)) + 1, len(ids)]:
        part = spell_ids(ids[position:end])
        words.append(f"[{part}]" if mask[position] else part)
        position = end
    return "".join(words)


def spell_ids(ids: np.ndarray) -> str:
    marks = {BPE.bos_id: "<s>", BPE.eos_id: "</s>", LAYOUT.img_start_id: "<img>", LAYOUT.img_end_id: "</img>"}
    result, text, codes = "", [], []
    for value in [*ids.tolist(), None]:
        if value is not None and value < LAYOUT.base_size and value not in marks:
            text.append(value)
            continue
        if text:
            result += " " + BPE.decode(text)  # decoding drops the blank that every run of text begins with
            text = []
        if value in marks:
            result += marks[value]
        elif value is not None:
            codes.append(value - LAYOUT.image_code_offset)
            if len(codes) == 32:
                result += NAMES[tuple(codes)]
                codes = []
    return result


def document(*segments: ImageSegment | str, metadata: str | None = None) -> Document:
    parts = tuple(TextSegment(part) if isinstance(part, str) else part for part in segments)
    return Document("key", parts, metadata)


def dialogue(*parts: tuple[Role, ImageSegment | str]) -> Document:
    segments = [
        TextSegment(part, role) if isinstance(part, str) else ImageSegment(part.codes, role)
        for role, part in parts
    ]
    return Document("key", tuple(segments))


U, A, S = Role.USER, Role.ASSISTANT, Role.SYSTEM


class TestByHand:
    def test_pair(self) -> None:
        cat = document(FIRST, "A cat.")
        assert spell(cat, "pair", reverse_ratio=0.0) == "<s>[ A cat.<img>1</img></s>]"
        assert spell(cat, "pair", reverse_ratio=1.0) == "<s>[<img>1</img> A cat.</s>]"
        assert spell(cat, "pair", ScriptedDraws([0.49])) == spell(cat, "pair", reverse_ratio=1.0)
        assert spell(cat, "pair", ScriptedDraws([0.5])) == spell(cat, "pair", reverse_ratio=0.0)

    def test_pair_second_learned(self) -> None:
        cat = document(FIRST, "A cat.")
        drawn = spell(cat, "pair", reverse_ratio=0.0, learn="second")
        assert drawn == "<s> A cat.<img>[1</img></s>]"
        described = spell(cat, "pair", reverse_ratio=1.0, learn="second")
        assert described == "<s><img>1</img>[ A cat.</s>]"

    def test_pair_prompts_and_metadata(self) -> None:
        cat = document(FIRST, "alt", metadata='{"top": "A cat"}')
        settings_ = {
            "caption_field": "top",
            "prompts": ("{caption}!", "See: {caption}"),
            "reverse_ratio": 0.0,
        }
        assert spell(cat, "pair", ScriptedDraws([], [1]), **settings_) == "<s>[ See: A cat<img>1</img></s>]"

    def test_interleaved(self) -> None:
        page = document("One.", FIRST, "Two.", "More.", SECOND, THIRD, "End.")
        plain = "<s>[ One.<img>1</img> Two. More.<img>2</img><img>3</img> End.</s>]"
        assert spell(page, "interleaved") == plain
        swapped = "<s>[ One. Two.<img>1</img> More.<img>2</img> End.<img>3</img></s>]"
        assert spell(page, "interleaved", reverse_ratio=1.0) == swapped
        assert spell(page, "interleaved", max_images=1) == "<s>[ One.<img>1</img> Two.</s>]"
        assert spell(page, "interleaved", max_images=2) == (
            "<s>[ One.<img>1</img> Two. More.<img>2</img></s>]"
        )
        paragraphs = spell(page, "interleaved", max_images=None, text_separator="\n\n")
        assert paragraphs == plain.replace("Two. More", "Two.\n\nMore")

    def test_video(self) -> None:
        clip = document(FIRST, SECOND, THIRD, "A clip.")
        assert spell(clip, "video") == "<s><img>1</img><img>2</img><img>3</img>[ A clip.</s>]"
        assert spell(clip, "video", num_frames=1) == "<s><img>2</img>[ A clip.</s>]"
        assert spell(clip, "video", num_frames=2, learn_frames=True) == (
            "<s>[<img>1</img><img>3</img> A clip.</s>]"
        )

    def test_text(self) -> None:
        assert spell(document("One.", "Two."), "text") == "<s>[ One.\n\nTwo.</s>]"

    def test_chat_vicuna(self) -> None:
        talk = dialogue((S, "Be kind."), (U, FIRST), (U, "What?"), (A, "A cat. "), (U, " And?"), (A, SECOND))
        assert spell(talk, "chat") == (
            "<s> Be kind.\n USER: <img>1</img> What?\nASSISTANT:[ A cat.] \nUSER: And?\nASSISTANT:"
            "[<img>2</img></s>]"
        )
        ended = spell(talk, "chat", eos_after_answers=True)
        assert ended.count("</s>]") == 2
        assert "[ A cat.</s>] \nUSER:" in ended

    def test_chat_with_several_system_turns(self) -> None:
        talk = dialogue((S, "Be kind."), (U, "What?"), (S, " "), (S, "Be brief."), (A, "A cat."))
        ended = " USER: What?\nASSISTANT:[ A cat.</s>]"
        assert spell(talk, "chat", system_message="Hi.") == f"<s> Be kind.\nBe brief.\n{ended}"
        blank = dialogue((S, " "), (U, "What?"), (A, "A cat."))
        assert spell(blank, "chat", system_message="Hi.") == f"<s> Hi.\n{ended}"

    def test_chat_llama2(self) -> None:
        talk = dialogue((U, FIRST), (U, "What?"), (A, "A cat."), (U, "And?"), (A, "A dog."))
        assert spell(talk, "chat", style=ChatStyle.LLAMA2) == (
            "<s> [INST] <img>1</img> What? [/INST]\n[ A cat.] \n[INST] And? [/INST]\n[ A dog.</s>]"
        )
        kind = spell(talk, "chat", style=ChatStyle.LLAMA2, system_message="Be kind.")
        assert kind.startswith("<s> [INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n<img>1</img>")

    def test_question(self) -> None:
        talk = dialogue((U, FIRST), (U, "What animal is it?"), (A, "cat"))
        assert spell(talk, "question") == (
            "<s> USER: <img>1</img> What animal is it? Please provide an accurate answer consisting of only"
            " one word or phrase.\nASSISTANT:[ cat</s>]"
        )

    def test_edit(self) -> None:
        change = document(FIRST, " Make it red. ", SECOND)
        assert spell(change, "edit", form="plain") == "<s><img>1</img> Make it red.[<img>2</img></s>]"
        assert spell(change, "edit", ScriptedDraws([], [1])) == (
            "<s> USER: <img>1</img>  Make it red.\nASSISTANT:[ Here is the edited image.<img>2</img></s>]"
        )
        again = document(FIRST, "Red.", SECOND, "Blue.", THIRD)
        assert spell(again, "edit", responses=("Yes.",)) == (
            "<s> USER: <img>1</img> Red.\nASSISTANT:[ Yes.<img>2</img>]"
            " \nUSER: Blue.\nASSISTANT:[ Yes.<img>3</img></s>]"
        )

    def test_instruct_pair(self) -> None:
        cat = document(FIRST, "A cat.")
        assert spell(cat, "instruct_pair", reverse_ratio=1.0) == (
            "<s> USER: <img>1</img> Please provide an accurate and concise description of the given image."
            "\nASSISTANT:[ A cat.</s>]"
        )
        assert spell(cat, "instruct_pair", ScriptedDraws([], [2]), reverse_ratio=0.0) == (
            "<s> USER: Can you make a picture of A cat?\nASSISTANT:[ I have made this image.<img>1</img></s>]"
        )

    def test_prompts_of_the_paper(self) -> None:
        yes = {"responses": ("Yes.",)}
        assert spell(document(FIRST, "a dog.", SECOND), "stylised", **yes) == (
            "<s> USER: <img>1</img> Generate an image of a dog in the same style."
            "\nASSISTANT:[ Yes.<img>2</img></s>]"
        )
        assert spell(document(FIRST, SECOND, THIRD), "blend", **yes) == (
            "<s> USER: <img>1</img><img>2</img> Please blend the two images."
            "\nASSISTANT:[ Yes.<img>3</img></s>]"
        )
        assert spell(document(FIRST, "Put it on the moon.", SECOND), "compose", **yes) == (
            "<s> USER: <img>1</img> Put it on the moon.\nASSISTANT:[ Yes.<img>2</img></s>]"
        )
        asked = "<s> USER: <img>1</img> This is the first image.<img>2</img> This is the second image. Mix."
        assert spell(document(FIRST, SECOND, "Mix.", THIRD), "in_context", **yes) == (
            asked + "\nASSISTANT:[ Yes.<img>3</img></s>]"
        )
        assert spell(document(FIRST, SECOND, "Mix.", "No."), "in_context") == asked + "\nASSISTANT:[ No.</s>]"


@pytest.mark.parametrize(
    ("template", "unfit", "reason"),
    [
        ("pair", document("only text"), Refusal.NO_IMAGE),
        ("pair", document(FIRST, SECOND, "two"), Refusal.NOT_A_PAIR),
        ("pair", document(FIRST), Refusal.NO_TEXT),
        ("pair", document(FIRST, " .;- "), Refusal.NO_TEXT),
        ("pair", document(FIRST, "\u3000\xa0"), Refusal.NO_TEXT),
        ("instruct_pair", document(FIRST, "\u3000"), Refusal.NO_TEXT),
        ("interleaved", document(""), Refusal.NO_TEXT),
        ("video", document("no frames"), Refusal.NO_IMAGE),
        ("video", document(FIRST, " "), Refusal.NO_TEXT),
        ("text", document("..."), Refusal.NO_TEXT),
        ("text", document("A cat.", FIRST), Refusal.MISPLACED_IMAGE),
        ("chat", document("no roles"), Refusal.NO_ROLES),
        ("chat", dialogue((U, "Anyone?")), Refusal.NO_ANSWER),
        ("chat", dialogue((A, "Hello.")), Refusal.NO_ANSWER),
        ("chat", dialogue((U, "Anyone?"), (A, " \n")), Refusal.NO_ANSWER),
        ("chat", dialogue((S, FIRST), (U, "Anyone?"), (A, "Yes.")), Refusal.MISPLACED_IMAGE),
        ("edit", document(FIRST, "no target"), Refusal.WRONG_SHAPE),
        ("blend", document(FIRST, SECOND), Refusal.WRONG_SHAPE),
        ("blend", document(FIRST, "in winter", SECOND, THIRD), Refusal.WRONG_SHAPE),
        ("compose", document(FIRST, "a", "b", SECOND), Refusal.WRONG_SHAPE),
        ("in_context", document(FIRST, "a", SECOND), Refusal.WRONG_SHAPE),
        ("in_context", document(), Refusal.WRONG_SHAPE),
    ],
)
def test_documents_that_do_not_fit_are_refused(template: str, unfit: Document, reason: Refusal) -> None:
    with pytest.raises(DocumentRefusedError) as caught:
        spell(unfit, template)
    assert caught.value.reason == reason


@pytest.mark.parametrize("metadata", ["[]", "{", '{"top": 5}', f'{{"top": {"9" * 5000}}}', "[" * 100_000])
def test_metadata_without_a_readable_caption_are_refused(metadata: str) -> None:
    with pytest.raises(DocumentRefusedError) as caught:
        spell(document(FIRST, metadata=metadata), "pair", caption_field="top")
    assert caught.value.reason == Refusal.NO_CAPTION_FIELD


def test_half_a_character_in_the_metadata_is_replaced() -> None:
    cat = document(FIRST, metadata=r'{"top": "a \ud800 cat"}')
    drawn = spell(cat, "pair", caption_field="top", reverse_ratio=0.0)
    assert drawn == "<s>[ a \ufffd cat<img>1</img></s>]"


def test_captions_in_any_script_have_words() -> None:
    assert spell(document(FIRST, "猫。"), "pair", reverse_ratio=0.0) == "<s>[ 猫。<img>1</img></s>]"
    assert "😀" in spell(document(FIRST, "😀"), "pair", reverse_ratio=0.0)


MARKERS = ["<img>", "</img>", "<img_00042>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<0x0A>", "<pad>"]
marked_text = st.lists(st.sampled_from(MARKERS) | st.text(max_size=8), max_size=8).map("".join)


@pytest.mark.parametrize("tokenizer", [BPE, SENTENCEPIECE], ids=["bpe", "sentencepiece"])
@given(caption=marked_text)
@settings(deadline=None, max_examples=150)
def test_text_never_becomes_anything_but_text(tokenizer: TextTokenizer, caption: str) -> None:
    pieces = [Piece(FIRST.codes, True), Piece(caption, True)]
    ids, _ = render([pieces], tokenizer, tokenizer.layout).document(0)
    text = ids[35:-1]
    assert not set(text.tolist()) & {tokenizer.bos_id, tokenizer.eos_id}
    assert np.all(text < tokenizer.base_size)
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.eos_id
    assert np.array_equal(ids[1:35], tokenizer.layout.image_span(FIRST.codes))


@given(parts=st.lists(st.integers(0, 40) | st.none(), max_size=12), seq_length=st.integers(34, 120))
@settings(deadline=None)
def test_splitting_keeps_every_id_and_every_image_span(parts: list[int | None], seq_length: int) -> None:
    runs = [np.full(part, 5) if part is not None else LAYOUT.image_span(FIRST.codes) for part in parts]
    ids = np.concatenate([[1], *runs, [2]]).astype(np.uint32)
    bounds = split_points(ids, seq_length, LAYOUT)
    assert bounds[0] == 0
    assert bounds[-1] == len(ids)
    lengths = np.diff(bounds)
    assert np.all(lengths > 0)
    assert np.all(lengths <= seq_length)
    if len(ids) <= seq_length:
        assert len(bounds) == 2
    for start in np.flatnonzero(ids == LAYOUT.img_start_id):
        assert not any(start < bound < start + 34 for bound in bounds), "a span is cut"
    for first, second in pairwise(lengths):
        assert first + min(second, 34) > seq_length, "parts are as long as they can be"


def test_a_sequence_shorter_than_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than an image span of 34"):
        split_points(np.zeros(50, np.uint32), 33, LAYOUT)


def test_draws_are_uniform_and_stable() -> None:
    draws = DocumentDraws(stable_hash("a", 1))
    values = [draws.uniform() for _ in range(20_000)]
    assert abs(np.mean(values) - 0.5) < 0.01
    counts = np.bincount([draws.below(7) for _ in range(14_000)], minlength=7)
    assert np.all(abs(counts - 2000) < 200)
    assert DocumentDraws(stable_hash("a", 1)).uniform() == values[0]
    keys = row_keys(stable_hash("x"), 0, 1000)
    assert len(set(keys.tolist())) == 1000
    assert np.array_equal(row_keys(stable_hash("x"), 300, 5), keys[300:305])


def test_tokenizer_errors_name_the_remedy(tmp_path) -> None:
    with pytest.raises(TextTokenizerError, match=r"neither a tokenizer file nor a folder"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # LLaMA 3's tiktoken format
    with pytest.raises(TextTokenizerError, match=r"use the tokenizer\.json"):
        TextTokenizer(tmp_path)
    with pytest.raises(TextTokenizerError, match=r"text_tokenizer\.eos_token"):
        TextTokenizer(SAMPLE_TOKENIZER, eos_token="<end>")
