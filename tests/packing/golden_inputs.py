"""The inputs of the golden sequences as our documents: what a source would make of the released samples."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.packing.render import render
from pipeline.packing.templates import TEMPLATES
from schemas.document import Document, ImageSegment, Role, Segment, TextSegment
from tokenizer.text_tokenizer import TextTokenizer

DATA = Path(__file__).parents[1] / "data" / "templates"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "training" / "templates"
SAMPLE_TOKENIZER = Path(__file__).parents[2] / "samples" / "text_tokenizer"
IGNORED = -100


@dataclass
class ScriptedDraws:
    """Draws that were written down."""

    uniforms: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def uniform(self) -> float:
        return self.uniforms.pop(0) if self.uniforms else 0.5

    def below(self, limit: int) -> int:
        number = self.numbers.pop(0) if self.numbers else 0
        assert number < limit
        return number


@dataclass(frozen=True)
class Case:
    """One golden line and our equivalent of its input."""

    id: str
    function: str
    document: Document
    template: str
    settings: dict[str, Any]
    draws: ScriptedDraws
    ids: list[int] | None
    labels: list[int] | None
    line: dict[str, Any]

    @property
    def learned(self) -> list[bool]:
        """Which positions the release learns; nothing predicts position 0."""
        assert self.labels is not None
        return [False, *(label != IGNORED for label in self.labels[1:])]


def images_of(values: Any) -> list[ImageSegment]:
    flat = np.array([code for value in values for code in (value if isinstance(value, list) else [value])])
    return [ImageSegment(codes) for codes in flat.astype(np.uint16).reshape(-1, 32)]


def turns(*segments: tuple[Role, Any]) -> list[Segment]:
    """Segments with roles; strings are texts."""
    result: list[Segment] = []
    for role, content in segments:
        if isinstance(content, str):
            result.append(TextSegment(content, role))
        else:
            result.append(ImageSegment(content.codes, role))
    return result


USER, ASSISTANT, SYSTEM = Role.USER, Role.ASSISTANT, Role.SYSTEM


def read_cases(folder: Path, results: str | None = None) -> Iterator[Case]:
    """Cases of a folder; with another file of results instead of those for ``tokenizer.json``."""
    lines = [json.loads(line) for line in (folder / "sequences.jsonl").open(encoding="utf-8")]
    others = {}
    if results:
        others = {row["id"]: row for row in map(json.loads, (folder / results).open(encoding="utf-8"))}
    for line in lines:
        line |= others.get(line["id"], {})
        document, template, settings, draws = to_ours(line)
        yield Case(
            line["id"], line["function"], document, template, settings, draws,
            line.get("input_ids"), line.get("labels"), line,
        )  # fmt: skip


def to_ours(line: dict[str, Any]) -> tuple[Document, str, dict[str, Any], ScriptedDraws]:
    """Our document, template, settings and draws for a golden line."""
    sample, arguments = line["sample"], line["args"]
    kind = line["function"].removeprefix("decode_").removesuffix("_for_llm").removesuffix("_data")
    uniforms = [value for name, value in line["draws"] if name == "numpy.random.uniform"]
    numbers = [value for name, value in line["draws"] if name == "random.randint"]
    segments, template, settings = _READERS[kind](sample, arguments, uniforms, numbers)
    metadata = json.dumps(sample["metadata"]) if isinstance(sample.get("metadata"), dict) else None
    draws = ScriptedDraws(list(uniforms))
    return Document(line["key"], tuple(segments), metadata), template, settings, draws


def _pair(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    settings = {"reverse_ratio": arguments["reverse_ratio"]}
    if arguments.get("mask_left_label"):
        settings["learn"] = "second"
    if arguments.get("use_caption_in_metadata"):
        settings["caption_field"] = arguments["caption_key_in_metadata"]
    if prompts := arguments.get("caption_prompt"):
        settings["prompts"] = (prompts[0].replace("{}", "{caption}"),)  # the one that was drawn
    return [*images_of(sample["image_ids"]), TextSegment(sample["text"])], "pair", settings


def _mmc4(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    segments: list[Segment] = []
    for codes, text in zip(sample["image_ids"], sample["texts"], strict=True):
        segments += images_of(codes) if codes else [TextSegment(text)]
    settings = {"reverse_ratio": arguments["reverse_ratio"], "max_images": arguments.get("max_images")}
    return segments, "interleaved", settings


def _video(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    frames = images_of(sample["image_ids"])
    if "question" not in sample:
        return [*frames, TextSegment(sample["answer"])], "video", {}
    answer = sample["answer"].replace("QA_GT_caption_based_noisy", "")  # a mark of that data set
    return (
        turns(*((USER, frame) for frame in frames), (USER, sample["question"].strip()), (ASSISTANT, answer)),
        "chat",
        {},
    )


def _text_conversation(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    data = sample.get("data", [])
    segments = turns(*((USER if index % 2 == 0 else ASSISTANT, text) for index, text in enumerate(data)))
    return segments, "chat", {"system_message": arguments.get("system_message", "")}


def _visual_question(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    images, data = images_of(sample["image_ids"]), sample.get("data")
    if data is None:
        data = [sample["inputs"] if sample["inputs"].strip() else sample["instruction"], sample["outputs"]]
    first = [(USER, image) for image in images]
    question = [(USER, data[0])]
    opening = first + question if not uniforms or uniforms[0] < 0.5 else question + first
    rest = [(ASSISTANT if index % 2 == 0 else USER, text) for index, text in enumerate(data[1:])]
    return turns(*opening, *rest), "chat", {"system_message": arguments.get("system_message", "")}


def _text_pretrain(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    return [TextSegment(sample["text"])], "text", {}


RESPONSES = [
    "Here is a picture.",
    "I have created an image.",
    "Enjoy this picture.",
    "I have generated an image.",
]
EDIT_RESPONSES = [*RESPONSES, "Here's a picture."]


def _edit(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    source, target = images_of(sample["source_image_ids"]) + images_of(sample["target_image_ids"])
    if "instruction_gpt" in sample:
        instruction, response = sample["instruction_gpt"], sample["response"]
    else:
        instruction = sample["instruction"]
        response = EDIT_RESPONSES[numbers[0]] if numbers else ""
    settings: dict[str, Any] = {"responses": (response,)}
    if not response:
        instruction = instruction.replace("Edit this image with the instruction:", "")
        settings = {"form": "plain"}
    return [source, TextSegment(instruction), target], "edit", settings


def _edit_multi(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    images = images_of(sample["image_ids"])
    segments: list[Segment] = [images[0]]
    for index, image in enumerate(images[1:]):
        segments += [TextSegment(sample[f"instruction{index}"]), image]
    return segments, "edit", {"responses": (EDIT_RESPONSES[numbers[0]],)}


def _conversation(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    questions = [text.strip() for text in sample["question"].split("Question:")[1:]]
    answers = [text.strip() for text in sample["answer"].split("Answer:")[1:]]
    rows = [(USER, image) for image in images_of(sample["image_ids"])]
    for question, answer in zip(questions, answers, strict=True):
        rows += [(USER, question), (ASSISTANT, answer)]
    return turns(*rows), "chat", {}


def _difference(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    first, second = images_of(sample["image_ids"])
    question, answer = (
        re.sub("image [bB]", "the second image", re.sub("image [aA]", "the first image", sample[name]))
        for name in ("question", "answer")
    )
    if uniforms[0] < 0.5:
        segments = [first, second, TextSegment(question), TextSegment(answer)]
        return segments, "in_context", {}
    named = [(USER, "This is the first image."), (USER, first), (USER, "This is the second image.")]
    return turns(*named, (USER, second), (USER, question), (ASSISTANT, answer)), "chat", {}


def _story(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    images = images_of(sample["image_ids"])
    captions = [sample[f"caption{index}"].strip() for index in range(5)]
    rows: list[tuple[Role, Any]] = [(USER, captions[0]), (USER, images[0])]
    if arguments["reverse_ratio"] == 0.0:
        for caption, image in zip(captions[1:], images[1:], strict=True):
            rows += [(USER, caption + " Please generate an image."), (ASSISTANT, "Here is an image.")]
            rows.append((ASSISTANT, image))
        return turns(*rows), "chat", {}
    asked = "Can you show me with images and texts what will occur then?"
    answer = "Certainly, I can show you with images and texts what will occur then."
    rows += [(USER, asked), (ASSISTANT, answer)]
    for caption, image in zip(captions[1:], images[1:], strict=True):
        rows += [(ASSISTANT, "\n" + caption), (ASSISTANT, image)]
    return turns(*rows), "chat", {}


def _question_answer(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    images = images_of(sample["image_ids"])
    if "question" in sample:
        return turns((USER, images[0]), (USER, sample["question"]), (ASSISTANT, sample["answer"])), "chat", {}
    prompt, response = {
        12: ("Show me a photograph of {caption}.", "Here is a photograph."),
        19: ("Can you show me an illustration of {caption}?", "Sure, please enjoy this illustration."),
    }[numbers[0]]
    settings = {"reverse_ratio": 0.0, "draw_prompts": (prompt,), "responses": (response,)}
    return [*images, TextSegment(sample["text"])], "instruct_pair", settings


def _interleaved(sample: Any, arguments: Any, uniforms: Any, numbers: Any) -> Any:
    rows: list[tuple[Role, Any]] = []
    for role, text in ((USER, sample["instruction"]), (ASSISTANT, sample["response"])):
        for part in re.split("(<img>.*?</img>)", text):
            if part.startswith("<img>"):
                codes = [int(code) for code in re.findall(r"<img_(\d{5})>", part)]
                rows.append((role, images_of(codes)[0]))
            elif part:
                rows.append((role, part))
    return turns(*rows), "chat", {}


_READERS = {
    "image_text_pair": _pair,
    "mmc4": _mmc4,
    "video_pair": _video,
    "text_conversation": _text_conversation,
    "visual_question": _visual_question,
    "text_pretrain": _text_pretrain,
    "edit_pair": _edit,
    "edit_multi_pair": _edit_multi,
    "conversation_pair": _conversation,
    "difference_pair": _difference,
    "story_pair": _story,
    "question_answer_pair": _question_answer,
    "interleaved_pair": _interleaved,
}


def render_case(
    case: Case, tokenizer: TextTokenizer, document: Document | None = None, **settings: Any
) -> tuple[list[int], list[bool]]:
    """Our ids and learned positions, perhaps of a changed document or with changed settings."""
    template, settings_class = TEMPLATES[case.template]
    draws = ScriptedDraws(list(case.draws.uniforms))
    pieces = template(document or case.document, settings_class(**case.settings | settings), draws)
    ids, mask = render([pieces], tokenizer, tokenizer.layout).document(0)
    return ids.tolist(), mask.tolist()
