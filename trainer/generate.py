"""Generation of text and images: batched, with a key-value cache, structure always valid.

Each row's random numbers depend on (seed, row) alone, and its keys and values stand at its own positions,
so a row gives the same ids in any batch, up to rounding.

Dimensions: B rows, T ids of the longest prompt, V rows of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.vocabulary import CODEBOOK_SIZE, IMAGE_SPAN_LENGTH, VocabularyLayout
from trainer.image_grammar import TEXT, ImageGrammar
from trainer.llama import KeyValueCache, Llama


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How ids are drawn."""

    max_new_ids: int = 256
    """Ids of an answer at most; an image takes 34."""
    temperature: float = 1.0
    """0 takes the most probable id."""
    top_p: float = 1.0
    """Draw from the fewest ids that hold this share of the probability."""
    forces_image: bool = False
    """Begin the answer with ``<img>``."""
    seed: int = 0
    """A row draws by (seed, its place among all rows)."""
    num_codes: int = CODEBOOK_SIZE
    """Entries of the image tokenizer's codebook, where it is a small one: codes beyond are never drawn."""

    def __post_init__(self) -> None:
        if self.max_new_ids < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "max_new_ids must be at least 1, temperature at least 0 and top_p in (0, 1], got "
                f"{self.max_new_ids}, {self.temperature}, {self.top_p}"
            )
        if not 1 <= self.num_codes <= CODEBOOK_SIZE:
            raise ValueError(f"num_codes must be in 1..{CODEBOOK_SIZE}, got {self.num_codes}")
        if self.forces_image and self.max_new_ids < IMAGE_SPAN_LENGTH:
            raise ValueError(f"an image needs max_new_ids of {IMAGE_SPAN_LENGTH}, got {self.max_new_ids}")


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: Sequence[NDArray[np.integer]],
    layout: VocabularyLayout,
    eos_id: int,
    config: SamplingConfig,
    *,
    first_row: int = 0,
) -> list[list[int]]:
    """Continue prompts.

    Args:
        model: in evaluation mode, whole, on one device.
        prompts: ids of each, not empty (``prompt.encode_prompt``).
        layout: of the model's vocabulary.
        eos_id: ends a row.
        config: how to draw.
        first_row: rows of earlier calls, where one set of prompts is given in several batches: each row
            draws by its place in the whole set.

    Returns:
        New ids of each row, without the EOS.

    Raises:
        ValueError: when there is no prompt, one is empty, or prompt and answer do not fit the model's
            context.
    """
    _check_lengths(model, prompts, config)
    return _Rows(model, prompts, layout, eos_id, config, first_row).run()


def _check_lengths(model: Llama, prompts: Sequence[NDArray[np.integer]], config: SamplingConfig) -> None:
    if not prompts or min(map(len, prompts)) == 0:
        raise ValueError("generation needs at least one prompt, and at least one id in each")
    longest = max(map(len, prompts)) + config.max_new_ids
    if longest > model.config.max_length:
        raise ValueError(
            f"longest prompt and max_new_ids make {longest} ids, the model's context is "
            f"{model.config.max_length}; shorten the prompt or lower max_new_ids"
        )


class _Rows:
    """A batch of rows while it is generated."""

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[NDArray[np.integer]],
        layout: VocabularyLayout,
        eos_id: int,
        config: SamplingConfig,
        first_row: int,
    ) -> None:
        weight = next(model.parameters())
        self._model, self._eos_id, self._config = model, eos_id, config
        self._device = weight.device
        self._grammar = ImageGrammar(layout, config.num_codes)
        self._random = [np.random.default_rng((config.seed, first_row + row)) for row in range(len(prompts))]
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        self._prompts = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            self._prompts[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
        states = [
            self._grammar.state_of(torch.from_numpy(prompt.astype(np.int64))[None]) for prompt in prompts
        ]
        self._state = torch.cat(states).to(self._device)
        num_slots = self._prompts.shape[1] + config.max_new_ids
        self._cache = KeyValueCache.empty(model.config, len(prompts), num_slots, like=weight)

    def run(self) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in self._prompts]
        is_done = torch.zeros(len(answers), dtype=torch.bool, device=self._device)
        logits = self._read_prompts()
        for number in range(self._config.max_new_ids):
            ids = self._choose(logits, number)
            is_done |= ids == self._eos_id
            for row, (value, done) in enumerate(zip(ids.tolist(), is_done.tolist(), strict=True)):
                if not done:
                    answers[row].append(value)
            if bool(is_done.all()) or number + 1 == self._config.max_new_ids:
                break
            self._state = self._grammar.advance(self._state, ids)
            logits = self._read(ids[:, None], (self._lengths + number)[:, None], torch.zeros_like(ids))
        return answers

    def _read_prompts(self) -> Tensor:
        """Prompts are aligned at their start; what stands beyond a row's end is overwritten by its answer."""
        places = torch.arange(self._prompts.shape[1], device=self._device).expand(self._prompts.shape)
        return self._read(self._prompts.to(self._device), places, self._lengths - 1)

    def _read(self, ids_BT: Tensor, positions_BT: Tensor, take_B: Tensor) -> Tensor:
        """(B, V) fp32 logits after the id at ``take_B`` of each row."""
        logits: Tensor = self._model(ids_BT, positions_BT, cache=self._cache, take_B=take_B)
        return logits[:, 0].float()

    def _choose(self, logits_BV: Tensor, number: int) -> Tensor:
        """The next id of each row."""
        left = torch.full_like(self._state, self._config.max_new_ids - number)
        allowed = self._grammar.allowed(self._state, left, logits_BV.shape[1])
        if number == 0 and self._config.forces_image:
            start_id = self._grammar.layout.img_start_id
            is_start = torch.arange(logits_BV.shape[1], device=self._device) == start_id
            allowed = torch.where((self._state == TEXT)[:, None], is_start, allowed)
        logits_BV = logits_BV.masked_fill(~allowed, float("-inf"))
        if self._config.temperature == 0:
            return logits_BV.argmax(dim=-1)
        uniform = torch.tensor([random.random() for random in self._random], device=self._device)
        return draw(logits_BV / self._config.temperature, self._config.top_p, uniform)


def draw(logits_BV: Tensor, top_p: float, uniform_B: Tensor) -> Tensor:
    """Ids drawn from the smallest set that holds ``top_p`` of the probability: (B,) int64.

    Args:
        logits_BV: fp32; minus infinity is never drawn.
        top_p: share of probability, in (0, 1].
        uniform_B: one number of [0, 1) for each row, which decides the draw.
    """
    probabilities = logits_BV.softmax(dim=-1, dtype=torch.float64)
    highest, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    is_kept = highest.cumsum(dim=-1) - highest < top_p
    # Drawn in the order of ids: rounding reorders near-equal probabilities, and would change what is drawn.
    mass = (probabilities * torch.zeros_like(is_kept).scatter(1, ids, is_kept)).cumsum(dim=-1)
    wanted = uniform_B[:, None].double() * mass[:, -1:]
    place = torch.searchsorted(mass, wanted, right=True)
    last = (mass < mass[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(place, last)[:, 0]
