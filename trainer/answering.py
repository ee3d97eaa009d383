"""A trained model with its text tokenizer: prompts of text and images in, answers of text and images out.

Document marks and vocabulary are those that the model was trained with, not the text tokenizer's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.vocabulary import CODEBOOK_SIZE, IMAGE_SPAN_LENGTH, VocabularyLayout
from tokenizer.text_tokenizer import TextTokenizer
from trainer.generate import SamplingConfig, generate
from trainer.llama import Llama
from trainer.load_model import load_marks, load_model
from trainer.processes import choose_device
from trainer.prompt import Content, decode_contents, encode_prompt

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class AnsweringModel:
    """A model on one device, in evaluation mode, and what turns contents into its ids and back."""

    model: Llama
    layout: VocabularyLayout
    tokenizer: TextTokenizer
    num_codes: int = CODEBOOK_SIZE
    """Entries of the codebook that it was trained on."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        text_tokenizer: str | Path = "",
        device: str = "auto",
        precision: str = "fp32",
    ) -> "AnsweringModel":
        """Load an exported folder or a checkpoint.

        Args:
            folder: as for ``load_model``.
            text_tokenizer: folder or file of the one that the data were packed with; empty: it lies in
                ``folder``, where training was told of it.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
            precision: ``fp32`` or ``bf16``.

        Raises:
            FileNotFoundError: something is missing.
            ValueError: the text tokenizer is not the model's.
        """
        folder = Path(folder)
        tokenizer = TextTokenizer(text_tokenizer or folder)
        model, layout = load_model(folder)
        if layout.base_size < tokenizer.base_size:  # more rows than ids: `text_tokenizer.base_vocabulary`
            raise ValueError(
                f"{tokenizer.name} has {tokenizer.base_size} ids, {folder} was trained with "
                f"{layout.base_size}; give the text tokenizer of its mixture"
            )
        marks = load_marks(folder)
        if marks is not None:
            tokenizer.use_marks(marks.bos_id, marks.eos_id)
        num_codes = marks.num_codes if marks else CODEBOOK_SIZE
        return cls(model.to(choose_device(device), PRECISIONS[precision]), layout, tokenizer, num_codes)

    def encode(self, prompt: Sequence[Content]) -> NDArray[np.int64]:
        """Ids of BOS and a prompt's contents; (num_ids,) int64."""
        return encode_prompt(prompt, self.tokenizer, self.layout)

    def answers(
        self,
        prompts: Sequence[Sequence[Content]],
        sampling: SamplingConfig,
        batch_size: int = 16,
        *,
        first_row: int = 0,
    ) -> Iterator[list[Content]]:
        """Answers in the order of the prompts; a row draws by its place, counted from ``first_row``."""
        sampling = replace(sampling, num_codes=min(sampling.num_codes, self.num_codes))
        for start in range(0, len(prompts), batch_size):
            ids = [self.encode(prompt) for prompt in prompts[start : start + batch_size]]
            for answer in generate(
                self.model, ids, self.layout, self.tokenizer.eos_id, sampling, first_row=first_row + start
            ):
                yield decode_contents(answer, self.tokenizer, self.layout)

    def texts(
        self, prompts: Sequence[Sequence[Content]], sampling: SamplingConfig, batch_size: int = 16
    ) -> list[str]:
        """The text of each answer, images left out."""
        return [
            " ".join(part.strip() for part in answer if isinstance(part, str)).strip()
            for answer in self.answers(prompts, sampling, batch_size)
        ]

    def draw_codes(
        self, prompts: Sequence[Sequence[Content]], sampling: SamplingConfig, batch_size: int = 16
    ) -> NDArray[np.uint16]:
        """(num_prompts, 32) codes: the image that answers each prompt, its structure constrained."""
        only_an_image = replace(sampling, forces_image=True, max_new_ids=IMAGE_SPAN_LENGTH)
        return np.stack([codes for (codes,) in self.answers(prompts, only_an_image, batch_size)])

    @torch.inference_mode()
    def log_likelihood(self, prompt: Sequence[Content], continuation: str) -> tuple[float, bool]:
        """Log-probability of a text behind a prompt, and whether it is the greedy answer.

        Like prompts, the text is encoded by itself.
        """
        before = self.encode(prompt)
        wanted = torch.from_numpy(self.tokenizer.encode(continuation).astype(np.int64))
        ids = torch.cat([torch.from_numpy(before), wanted]).to(next(self.model.parameters()).device)
        bounds = torch.tensor([[0, len(ids)]], dtype=torch.int32, device=ids.device)
        logits = self.model(ids[None], torch.arange(len(ids), device=ids.device)[None], bounds)[0].float()
        scores = logits[len(before) - 1 : -1, : self.layout.size].log_softmax(dim=-1).cpu()
        is_greedy = bool((scores.argmax(dim=-1) == wanted).all())
        return float(scores.gather(1, wanted[:, None]).sum()), is_greedy
