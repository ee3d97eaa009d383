"""Constrained drawing: after ``<img>`` exactly 32 codes, then ``</img>``; no codes anywhere else.

A state machine of one number a row, so that it runs on the device beside the sampling:
``TEXT``, or how many codes the open image still needs (0: it must be closed now).

Dimensions: B rows, T ids read, V rows of the vocabulary.
"""

import torch
from torch import Tensor

from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE, IMAGE_SPAN_LENGTH, VocabularyLayout

TEXT = -1
"""State of a row that has no image open."""


class ImageGrammar:
    """Which ids may come next, given the ids so far."""

    def __init__(self, layout: VocabularyLayout, num_codes: int = CODEBOOK_SIZE) -> None:
        """``num_codes``: entries of the codebook in use; codes beyond are never allowed."""
        self.layout = layout
        self._num_codes = num_codes

    def state_of(self, ids_BT: Tensor) -> Tensor:
        """State after rows of ids: (B,) int64.

        An image is open when the newest ``<img>`` is followed by codes alone, at most 32 of them.
        """
        window = ids_BT[:, -(CODES_PER_IMAGE + 1) :]
        length = window.shape[1]
        if length == 0:
            return ids_BT.new_full((len(ids_BT),), TEXT)
        places = torch.arange(length, device=window.device)
        start = torch.where(window == self.layout.img_start_id, places, -1).amax(dim=1)
        is_after = places > start[:, None]
        num_after = is_after.sum(dim=1)
        is_open = (start >= 0) & ((self._is_code(window) & is_after).sum(dim=1) == num_after)
        return torch.where(is_open, CODES_PER_IMAGE - num_after, TEXT)

    def advance(self, state_B: Tensor, ids_B: Tensor) -> Tensor:
        """State after one more id of each row."""
        in_image = torch.where(state_B > 0, state_B - 1, TEXT)
        return torch.where((state_B == TEXT) & (ids_B == self.layout.img_start_id), CODES_PER_IMAGE, in_image)

    def allowed(self, state_B: Tensor, ids_left_B: Tensor, num_rows: int) -> Tensor:
        """Which ids may come next: (B, V) bool.

        Args:
            state_B: of each row.
            ids_left_B: ids that may still be written, the next one included; an image that would not fit
                is not opened.
            num_rows: V, padding rows included; these are never allowed.
        """
        ids = torch.arange(num_rows, device=state_B.device)
        is_text = ids < self.layout.base_size
        is_start = ids == self.layout.img_start_id
        is_end = ids == self.layout.img_end_id
        may_open = (ids_left_B >= IMAGE_SPAN_LENGTH)[:, None]
        state = state_B[:, None]
        in_text = (state == TEXT) & (is_text | (is_start & may_open))
        is_usable = self._is_code(ids) & (ids < self.layout.image_code_offset + self._num_codes)
        return in_text | ((state > 0) & is_usable) | ((state == 0) & is_end)

    def _is_code(self, ids: Tensor) -> Tensor:
        return (ids >= self.layout.image_code_offset) & (ids < self.layout.img_start_id)
