"""The image grammar for ``transformers.generate``, for people who serve an exported model there."""

import math

import torch
from transformers import LogitsProcessor

from schemas.vocabulary import CODEBOOK_SIZE, VocabularyLayout
from trainer.image_grammar import ImageGrammar


class ImageLogitsProcessor(LogitsProcessor):
    """Gives every id that may not come next a score of minus infinity.

    It reads the state from the ids, so it serves batches, beams and resumed prompts. To force an image, end
    the prompt with ``<img>``.
    """

    def __init__(self, layout: VocabularyLayout, max_length: int, num_codes: int = CODEBOOK_SIZE) -> None:
        """Take the vocabulary and what bounds the answer.

        Args:
            layout: vocabulary of the model.
            max_length: ids, prompt included, at which generation ends.
            num_codes: entries of the image tokenizer's codebook, as ``SamplingConfig.num_codes``.
        """
        self._grammar = ImageGrammar(layout, num_codes)
        self._max_length = max_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ids_left = input_ids.new_full((len(input_ids),), self._max_length - input_ids.shape[1])
        allowed = self._grammar.allowed(self._grammar.state_of(input_ids), ids_left, scores.shape[1])
        return scores.masked_fill(~allowed, -math.inf)  # type: ignore[return-value]  # torch: Tensor
