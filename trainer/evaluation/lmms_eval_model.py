"""lmms-eval drives a trained model: ``python -m lmms_eval --model seed_llama --model_args pretrained=...``.

lmms-eval finds ``manifest`` by the entry point of this project (group ``lmms_eval.models``, lmms-eval 0.7).
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image, ImageFile

from schemas.document import Codes
from tokenizer.checkpoint import load_tokenizer
from tokenizer.color import ColorRule
from tokenizer.preprocess import PreprocessConfig, load_image
from trainer.answering import AnsweringModel
from trainer.evaluation.answers import PROMPT
from trainer.evaluation.documents import IMAGE, fill_prompt
from trainer.generate import SamplingConfig
from trainer.load_model import RELEASE, check_codebook, check_worth_fetching
from trainer.prompt import Content

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest("seed_llama", simple_class_path=f"{__name__}.{SeedLlama.__name__}")


class SeedLlama(lmms):  # type: ignore[misc]  # lmms-eval lives in an environment of its own
    """An exported model, or a checkpoint, with its text tokenizer and an image tokenizer, in one process."""

    def __init__(
        self,
        pretrained: str,
        text_tokenizer: str = "",
        tokenizer: str = RELEASE,
        color: ColorRule = "reference",
        prompt: str = PROMPT,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        """Load both.

        Args:
            pretrained: folder of the model.
            text_tokenizer: as ``AnsweringModel.load``.
            tokenizer: of images: preset, folder or hub id; the one that made the training data.
            color: colour rule of that data.
            prompt: round a task's images and question; the paper's for VQA unless given.
            device: ``auto``, ``cpu``, ``cuda``.
            precision: of the language model, ``fp32`` or ``bf16``.
            batch_size: requests at once.
            others: nothing; lmms-eval passes arguments with the value None.

        Raises:
            ValueError: arguments that there are not, or an image tokenizer that is not the model's; of the
                default this is said before it is fetched.
        """
        super().__init__()
        if unknown := sorted(name for name, value in others.items() if value is not None):
            raise ValueError(f"seed_llama has no arguments {', '.join(unknown)}")
        folder = Path(pretrained)
        check_worth_fetching(folder, tokenizer, "tokenizer=")
        self.answering = AnsweringModel.load(pretrained, text_tokenizer, device, precision)
        self._images = load_tokenizer(tokenizer, batch_size=1)
        check_codebook(folder, self._images.codebook_hex, f"tokenizer {tokenizer}")
        self._preprocess = PreprocessConfig(color=color)
        self._prompt = prompt
        self._batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers in order; each ends before the first of the task's stop strings."""
        texts: list[str] = []
        for kwargs, group in itertools.groupby(requests, lambda request: request.args[1]):
            prompts = [self._contents(request.args[0], *request.args[2:6]) for request in group]
            answers = self.answering.texts(prompts, sampling_of(kwargs), self._batch_size)
            texts += [cut_at(answer, kwargs.get("until") or []) for answer in answers]
        return texts

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind its prompt, and whether it is the greedy answer."""
        results = []
        for context, target, *place in (request.args for request in requests):
            continuation = target(self._document(*place[1:])) if callable(target) else target
            prompt = self._contents(context, *place)
            results.append(self.answering.log_likelihood(prompt, continuation))
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: each question is asked by itself."""
        raise NotImplementedError(
            "seed_llama answers in one round; choose tasks of output_type generate_until"
        )

    def _contents(self, context: str, doc_to_visual: Any, *place: Any) -> list[Content]:
        visuals = doc_to_visual(self._document(*place)) if doc_to_visual is not None else []
        codes = [self._codes(visual) for visual in visuals or []]
        template = self._prompt if codes else self._prompt.replace(f"{IMAGE} ", IMAGE)
        return fill_prompt(template, codes, context)

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _codes(self, visual: Any) -> Codes:
        """Codes of a picture as tasks give it: Pillow's, or a path."""
        if isinstance(visual, Image.Image):
            buffer = io.BytesIO()
            (visual if visual.mode in PNG_MODES else visual.convert("RGB")).save(buffer, "PNG")
            source: bytes | Path = buffer.getvalue()
        elif isinstance(visual, str):
            source = Path(visual)
        else:
            raise ValueError(f"seed_llama reads pictures, the task gives {type(visual).__name__}")
        with refusing_truncated_pictures():
            pixels = load_image(source, self._preprocess)
        codes: Codes = self._images.encode(pixels[None])[0]
        return codes


@contextmanager
def refusing_truncated_pictures() -> Iterator[None]:
    """Without Pillow's switch for truncated pictures, which lmms-eval sets and our decoder refuses."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def sampling_of(kwargs: dict[str, Any]) -> SamplingConfig:
    """A task's generation settings; greedy unless it asks to sample."""
    temperature = float(kwargs.get("temperature") or 0.0)
    samples = bool(kwargs.get("do_sample", temperature > 0))
    return SamplingConfig(
        max_new_ids=int(kwargs.get("max_new_tokens") or 128),
        temperature=temperature or 1.0 if samples else 0.0,
        top_p=float(kwargs.get("top_p") or 1.0) if samples else 1.0,
    )


def cut_at(text: str, until: str | Sequence[str]) -> str:
    """The text before the first stop string."""
    stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
    return text[
        : min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
    ].strip()
