"""How turns of a chat are written: as Vicuna (SEED-LLaMA 8B) or LLaMA 2 (14B) was trained to read them."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.packing.render import END_OF_ANSWER, Piece
from schemas.document import Codes, ImageSegment, Role, Segment, TextSegment


class ChatStyle(StrEnum):
    """The two chat formats of the released models."""

    VICUNA = "vicuna"
    """``USER: question`` newline ``ASSISTANT:`` answer."""
    LLAMA2 = "llama2"
    """``[INST] question [/INST]`` newline, answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says at a time."""

    role: Role
    segments: list[Segment]

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but whitespace."""
        return all(isinstance(part, TextSegment) and not part.text.strip() for part in self.segments)


@dataclass(frozen=True, slots=True)
class _Words:
    before_question: str
    after_question: str
    between_turns: str


_WORDS = {
    ChatStyle.VICUNA: _Words("USER: ", "\nASSISTANT:", "\n"),
    ChatStyle.LLAMA2: _Words("[INST] ", " [/INST]\n", "\n"),
}


def chat_pieces(
    turns: list[Turn], style: ChatStyle, system: str, question_suffix: str, *, eos_after_answers: bool
) -> list[Piece]:
    """Pieces of a chat: questions and role words not learned, answers learned.

    Whitespace round a turn is dropped, inside it is kept. An answer is encoded by itself, so that its first
    id is the same at inference, where the model continues behind the role word.
    """
    words = _WORDS[style]
    opening, pieces = words.before_question, list[Piece]()
    if system:
        if style == ChatStyle.LLAMA2:
            opening = f"{opening}<<SYS>>\n{system.strip()}\n<</SYS>>\n\n"
        else:
            pieces.append(Piece(system if system.endswith("\n") else system + "\n", False))
    for number, turn in enumerate(turns):
        contents = _stripped(turn.segments)
        if turn.role == Role.USER:
            contents = [opening, *contents, question_suffix + words.after_question]
            pieces += [Piece(content, False) for content in _joined(contents)]
            opening = words.between_turns + words.before_question
        else:
            pieces += [Piece(content, True) for content in _joined(contents)]
            if eos_after_answers and number < len(turns) - 1:
                pieces.append(END_OF_ANSWER)
    return pieces


def _stripped(segments: list[Segment]) -> list[str | Codes]:
    """Contents of a turn, without whitespace at its two ends."""
    contents = [segment.codes if isinstance(segment, ImageSegment) else segment.text for segment in segments]
    if contents and isinstance(contents[0], str):
        contents[0] = contents[0].lstrip()
    if contents and isinstance(contents[-1], str):
        contents[-1] = contents[-1].rstrip()
    return contents


def _joined(contents: list[str | Codes]) -> list[str | Codes]:
    """Neighbouring texts as one, empty ones gone."""
    result = list[str | Codes]()
    for content in contents:
        if isinstance(content, str) and result and isinstance(result[-1], str):
            result[-1] += content
        elif not isinstance(content, str) or content:
            result.append(content)
    return result
