"""Our ids and learned positions against what the released data code makes of the same samples.

Every golden line is either equal or stands in one test class that states the difference exactly; the table in
``docs/packing.md`` lists them.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.packing.templates import DocumentRefusedError, Refusal
from schemas.document import Document, ImageSegment, TextSegment
from tests.packing.golden_inputs import DATA, SHARED, Case, read_cases, render_case
from tokenizer.text_tokenizer import TextTokenizer

BPE = TextTokenizer(DATA / "tokenizer.json")
SENTENCEPIECE = TextTokenizer(DATA / "sp_tokenizer.model")
SLOW_RESULTS = "sequences_llama_slow_4.35.2.jsonl"

NO_SHARED = "shared/golden/training/templates is not beside this checkout"

TRUNCATED = {"pair_truncated", "pair_truncated_masked", "mmc4_truncated", "video_truncated"}
INJECTED = {"pair_injection_t2i", "pair_injection_t2i_masked", "pair_injection_i2t_masked"}
INJECTED |= {"pair_special_literals"}
RUN_TOGETHER = {"mmc4_r1", "mmc4_r1_max2"}
TRAILING_BLANK = {"text_conv", "text_conv_system", "vqa_image_first", "vqa_image_last"}
TRAILING_BLANK |= {"vqa_two_images_system", "vqa_instruction", "vqa_instruction_inputs"}
FULL_STOP = {"sft_vqa", "sft_conversation", "sft_video", "sft_difference_a", "sft_difference_b", "sft_qa"}
REFUSED = {"pair_empty": Refusal.NO_TEXT, "text_conv_none": Refusal.NO_ANSWER}
OTHER = {"mmc4_adjacent_r1", "video_short", "mmc4_bad"}
DIFFERENT = TRUNCATED | INJECTED | RUN_TOGETHER | TRAILING_BLANK | FULL_STOP | REFUSED.keys() | OTHER


def all_cases() -> list[tuple[TextTokenizer, Case]]:
    """Lines of our copy under both tokenizers."""
    return [
        (tokenizer, case)
        for tokenizer, results in ((BPE, None), (SENTENCEPIECE, SLOW_RESULTS))
        for case in read_cases(DATA, results)
        if case.id != "mmc4_bad"  # an item that is image and text at once: no document of ours is
    ]


def chosen(names: set[str]) -> list[tuple[TextTokenizer, Case]]:
    found = [(tokenizer, case) for tokenizer, case in all_cases() if case.id in names]
    assert {case.id for _, case in found} == names & {case.id for case in read_cases(DATA)}
    return found


def parametrize(names: set[str]) -> pytest.MarkDecorator:
    cases = chosen(names)
    labels = [f"{case.id}-{'bpe' if tokenizer is BPE else 'sp'}" for tokenizer, case in cases]
    return pytest.mark.parametrize(("tokenizer", "case"), cases, ids=labels)


ALL_NAMES = {case.id for case in read_cases(DATA)}


@parametrize(ALL_NAMES - DIFFERENT)
def test_equal(tokenizer: TextTokenizer, case: Case) -> None:
    ids, learned = render_case(case, tokenizer)
    assert ids == case.ids
    assert learned == case.learned


def test_most_lines_are_equal() -> None:
    assert len(ALL_NAMES - DIFFERENT) == 18


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
def test_lines_with_web_captions() -> None:
    """Ten lines whose captions come from CC12M: not copied into the repository."""
    names = set()
    for tokenizer, results in ((BPE, None), (SENTENCEPIECE, SLOW_RESULTS)):
        for case in read_cases(SHARED, results):
            if case.id in ALL_NAMES:
                continue
            ids, learned = render_case(case, tokenizer)
            assert case.ids is not None
            if case.id in TRUNCATED:
                assert ids[: len(case.ids)] == case.ids
                assert len(ids) > len(case.ids)
            else:
                assert (ids, learned) == (case.ids, case.learned)
            names.add(case.id)
    assert len(names) == 10


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason=NO_SHARED)
def test_whitespace_beside_images_does_not_depend_on_a_library_version() -> None:
    """transformers 4.30.2 stripped blanks and newlines there in 21 of 54 lines; 4.35.2 and ours keep them."""
    old = {case.id: case for case in read_cases(SHARED, "sequences_llama_slow_4.30.2.jsonl")}
    new = {case.id: case for case in read_cases(SHARED, SLOW_RESULTS)}
    different = {name for name in new if new[name].ids != old[name].ids}
    assert len(different) == 21
    for name in different - DIFFERENT:
        ids, _ = render_case(new[name], SENTENCEPIECE)
        assert ids == new[name].ids != old[name].ids


@parametrize(TRUNCATED & ALL_NAMES)
def test_nothing_is_truncated(tokenizer: TextTokenizer, case: Case) -> None:
    """The release cuts at max_length, inside an image span too; ours stays whole (packing splits later)."""
    ids, _ = render_case(case, tokenizer)
    assert case.ids is not None
    assert ids[: len(case.ids)] == case.ids
    assert len(ids) > len(case.ids)
    assert ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.layout.img_start_id) == ids.count(tokenizer.layout.img_end_id)


@parametrize(INJECTED)
def test_markers_in_captions_stay_text(tokenizer: TextTokenizer, case: Case) -> None:
    ids, learned = render_case(case, tokenizer)
    layout = tokenizer.layout
    assert case.ids is not None
    specials = {tokenizer.bos_id, tokenizer.eos_id, 0}
    injected = sum(value >= layout.base_size or value in specials for value in case.ids)
    assert injected > 36, "the release lets the caption inject ids"
    assert sum(value >= layout.base_size for value in ids) == 34
    assert sum(value in specials for value in ids) == 2
    start = ids.index(layout.img_start_id)
    caption = ids[1:start] if start > 1 else ids[start + 34 : -1]
    assert tokenizer.decode(caption) == case.document.texts[0]
    if case.settings.get("learn") == "second":
        second = start + 1 if start > 1 else start + 34
        assert learned == [position >= second for position in range(len(ids))]


@parametrize(RUN_TOGETHER)
def test_neighbouring_texts_do_not_run_together(tokenizer: TextTokenizer, case: Case) -> None:
    assert render_case(case, tokenizer, text_separator="") == (case.ids, case.learned)
    ids, _ = render_case(case, tokenizer)
    assert "in the mountains. We walked" in tokenizer.decode(ids[: ids.index(tokenizer.layout.img_start_id)])
    assert ids != case.ids


@parametrize(TRAILING_BLANK)
def test_no_blank_before_answers(tokenizer: TextTokenizer, case: Case) -> None:
    """The pretraining variants write "ASSISTANT: " and encode the answer apart: a doubled blank."""
    ids, learned = render_case(case, tokenizer)
    blank = int(tokenizer.encode(" ")[-1])
    assert case.ids is not None
    doubled = {
        position
        for position in range(1, len(case.ids) - 1)
        if case.ids[position] == blank and not case.learned[position] and case.learned[position + 1]
    }
    assert doubled
    assert ids == [value for position, value in enumerate(case.ids) if position not in doubled]
    assert learned == [value for position, value in enumerate(case.learned) if position not in doubled]


def with_full_stops(document: Document) -> Document:
    segments = list(document.segments)
    for position, segment in enumerate(segments):
        is_answer = segment.role == "assistant" or position == len(segments) - 1
        if is_answer and isinstance(segment, TextSegment) and not segment.text.strip().endswith("."):
            segments[position] = replace(segment, text=segment.text.strip() + ".")
    return replace(document, segments=tuple(segments))


@parametrize(FULL_STOP)
def test_answers_are_left_as_they_are(tokenizer: TextTokenizer, case: Case) -> None:
    assert render_case(case, tokenizer, with_full_stops(case.document)) == (case.ids, case.learned)
    ids, learned = render_case(case, tokenizer)
    assert ids != case.ids
    learned_text = tokenizer.decode([value for value, keep in zip(ids, learned, strict=True) if keep])
    answers = [part.text.strip() for part in case.document.segments[1:] if part.role == "assistant"]
    assert learned_text.endswith(answers[-1] if answers else case.document.texts[-1])


@pytest.mark.parametrize("tokenizer", [BPE, SENTENCEPIECE], ids=["bpe", "sp"])
def test_adjacent_images_keep_their_order(tokenizer: TextTokenizer) -> None:
    """The release swaps an image with whatever follows; ours with a text only."""
    ((_, case),) = [item for item in chosen({"mmc4_adjacent_r1"}) if item[0] is tokenizer]
    ids, _ = render_case(case, tokenizer)
    assert case.ids is not None
    assert sorted(ids) == sorted(case.ids)
    first_codes = [int(image.codes[0]) for image in case.document.images]
    layout = tokenizer.layout

    def order(sequence: list[int]) -> list[int]:
        starts = [place for place, value in enumerate(sequence) if value == layout.img_start_id]
        return [sequence[place + 1] - layout.image_code_offset for place in starts]

    assert order(ids) == first_codes
    assert order(case.ids) == [first_codes[0], first_codes[2], first_codes[1]]


@pytest.mark.parametrize("tokenizer", [BPE, SENTENCEPIECE], ids=["bpe", "sp"])
def test_missing_frames_are_not_made_up(tokenizer: TextTokenizer) -> None:
    """The release writes an empty <img></img> for every missing frame."""
    ((_, case),) = [item for item in chosen({"video_short"}) if item[0] is tokenizer]
    ids, learned = render_case(case, tokenizer)
    assert case.ids is not None
    empty = next(
        place
        for place, pair in enumerate(zip(case.ids, case.ids[1:], strict=False))
        if pair == (tokenizer.layout.img_start_id, tokenizer.layout.img_end_id)
    )
    assert ids == case.ids[:empty] + case.ids[empty + 2 :]
    assert learned == case.learned[:empty] + case.learned[empty + 2 :]


@parametrize(set(REFUSED))
def test_refused_as_the_release_filters(tokenizer: TextTokenizer, case: Case) -> None:
    assert case.line.get("filter_flag") is False or case.ids is None
    with pytest.raises(DocumentRefusedError) as caught:
        render_case(case, tokenizer)
    assert caught.value.reason == REFUSED[case.id]


def test_golden_folder_is_documented() -> None:
    assert (Path(DATA) / "README.md").exists()
    assert all(isinstance(image, ImageSegment) for case in read_cases(DATA) for image in case.document.images)
