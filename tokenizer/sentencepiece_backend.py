"""A sentencepiece ``.model`` such as LLaMA's, whose special pieces no text can spell."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from tokenizer.text_backend import SEED_MARKERS, TextTokenizerError


class SentencePieceBackend:
    """A sentencepiece ``.model``; it never splits control tokens out of a text."""

    def __init__(self, file: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise TextTokenizerError(
                f"{file}: not a sentencepiece model ({error}); LLaMA 3's tokenizer.model is another format,"
                " use the tokenizer.json of its Hugging Face folder"
            ) from error
        self._file = file
        self.base_size = self._processor.vocab_size()
        self.named_ids = {
            self._processor.id_to_piece(index): index
            for index in range(self.base_size)
            if self._processor.is_control(index)
        }

    def hide(self, marks: AbstractSet[int]) -> None:
        """Special pieces become unused ones, which sentencepiece never gives."""
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        protocol: Any = sentencepiece_model_pb2  # makes its classes when it is imported
        kinds = protocol.ModelProto.SentencePiece
        model = protocol.ModelProto.FromString(self._file.read_bytes())
        for index, piece in enumerate(model.pieces):
            is_defined = piece.type == kinds.USER_DEFINED and _is_spelled(piece.piece)
            if is_defined or (index in marks and piece.type == kinds.NORMAL) or piece.piece in SEED_MARKERS:
                piece.type = kinds.CONTROL if piece.type == kinds.CONTROL else kinds.UNUSED
        if self._processor.unk_id() in marks:
            raise TextTokenizerError(
                f"{self._file}: a document mark is the model's unknown piece, so that unknown characters of a"
                " text would end its document; use another tokenizer"
            )
        self._encoder = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode_batch(self, texts: Sequence[str]) -> Iterator[list[int]]:
        yield from self._encoder.encode(list(texts), out_type=int, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(list(ids)))


def _is_spelled(piece: str) -> bool:
    """Whether a user-defined piece is a name, not one character or a run of whitespace."""
    return len(piece) > 1 and not piece.replace("\u2581", " ").isspace()
