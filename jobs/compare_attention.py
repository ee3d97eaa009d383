#!/usr/bin/env python3
"""Causal against bilateral codes, the paper's ablation at your scale: both tokenizers and a language model on
the codes of each, from the same pairs with the same seeds; then one table.

    python jobs/compare_attention.py --config recipes/compare_causal_bilateral.yaml

For each kind of attention: stage 1, stage 2, codes of all pairs, a LLaMA trained on captions and codes in
both orders, and on held-out pairs: retrieval, perplexities, and pictures drawn as codes from captions. An
interrupted comparison goes on where it was when the same command is given again. Exit status as
``pretrain.py``.
"""

import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.coded_pairs import pack_coded_pairs, write_coded_pairs
from jobs.command_line import EXIT_STOPPED, run_job
from jobs.config_file import parse_config
from jobs.train_tokenizer import TrainTokenizerConfig
from pipeline.training_pairs import PairBatches, TrainingPair, split_pairs
from schemas.packed_folder import PackedFolder
from tokenizer.checkpoint import load_model as load_tokenizer_model
from tokenizer.code_usage import usage_figures
from tokenizer.seed import codes_fingerprint
from trainer.answering import AnsweringModel
from trainer.contrastive_run import load_contrastive, pair_features
from trainer.evaluation.codes import encode_all
from trainer.evaluation.drawn_codes import drawn_figures
from trainer.evaluation.language_model import image_structure, language_losses
from trainer.evaluation.report import write_comparison
from trainer.evaluation.text_scores import caption_tables
from trainer.evaluation.tokenizer_retrieval import tokenizer_retrieval
from trainer.generate import SamplingConfig
from trainer.non_finite import NonFiniteError
from trainer.prompt import Content
from trainer.run_config import TrainConfig
from trainer.stage_data import HeldOut, held_out_of
from trainer.train import train
from trainer.train_tokenizer import run_stage

logger = logging.getLogger("compare_attention")

VARIANTS = {"causal": True, "bilateral": False}
STAGES: tuple[Literal["qformer", "codebook"], ...] = ("qformer", "codebook")
ALL_ROWS = sys.maxsize
GREEDY = SamplingConfig(temperature=0.0, max_new_ids=48)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """One comparison."""

    output: Path = Path("out/compare")
    """A folder for each variant, and the table: ``comparison.json`` and ``comparison.md``."""
    tokenizer: TrainTokenizerConfig = field(default_factory=TrainTokenizerConfig)
    """Stages 1 and 2 and the pairs; ``model.causal``, ``stage`` and ``output`` are set for each variant."""
    language: TrainConfig = field(default_factory=TrainConfig)
    """The language model; ``data.packed`` and ``output`` are set for each variant."""
    text_tokenizer: Path = Path("samples/text_tokenizer")
    """Folder or file of the language model's text tokenizer."""
    seq_length: int = 256
    """Ids of a packed row."""
    epochs: float = 4
    """How often each pair is packed, each time in either order."""
    num_prompts: int = 200
    """Held-out captions that pictures are drawn of."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.tokenizer.data.shuffle_pairs:
            raise ValueError(
                "tokenizer.data.shuffle_pairs: a comparison holds its pairs in memory; set it to 0"
            )


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(CompareConfig, arguments, __doc__ or "")
    try:
        compare(config)
    except InterruptedError as error:
        logger.warning("%s", error)
        return EXIT_STOPPED
    print((config.output / "comparison.md").read_text(encoding="utf-8"))
    return 0


def compare(config: CompareConfig) -> Mapping[str, Mapping[str, float]]:
    """Train and judge both variants, write the table; figures by variant."""
    shards = config.tokenizer.data.shards()
    pairs, kept = split_pairs(config.tokenizer.data, shards)
    logger.info("pairs=%d held_out=%d", len(pairs), len(kept))
    data = config.tokenizer.data.settings(shards, num_ranks=1)
    figures = {
        name: Variant(config, name, is_causal, data).figures(pairs, held_out_of(kept))
        for name, is_causal in VARIANTS.items()
    }
    write_comparison(figures, {"pairs": len(pairs), "held_out": len(kept)}, config.output / "comparison")
    return figures


class Variant:
    """One kind of attention: its tokenizer, its language model, its figures."""

    def __init__(self, config: CompareConfig, name: str, is_causal: bool, data: Mapping[str, Any]) -> None:
        self.config = config
        self.data = data
        self.folder = config.output / name
        self.stages = dataclasses.replace(
            config.tokenizer,
            output=self.folder,
            model=dataclasses.replace(config.tokenizer.model, causal=is_causal),
        )

    def figures(self, pairs: Sequence[TrainingPair], held_out: HeldOut) -> dict[str, float]:
        """Train what is not trained yet, and judge it on the held-out pairs."""
        captions = [pair.caption for pair in pairs]
        self._train_tokenizer(pairs, held_out, captions)
        self.tokenizer, weights_sha256 = load_tokenizer_model(self.folder / "codebook")
        pixels = self.stages.data.preprocess.fingerprint_components()
        self.fingerprint = codes_fingerprint(weights_sha256, self.tokenizer.config, "fp32", pixels)
        train_codes_IN = encode_all(self.tokenizer, np.stack([pair.image for pair in pairs]))
        codes_IN = encode_all(self.tokenizer, held_out.images)
        self._train_language(captions, train_codes_IN)
        usage = usage_figures(
            torch.bincount(train_codes_IN.flatten(), minlength=self.tokenizer.config.n_embed)
        )
        figures: dict[str, float] = {
            "codes used": usage.used,
            "code perplexity, by frequency alone": frequency_perplexity(
                train_codes_IN, codes_IN, self.tokenizer.config.n_embed
            ),
        }
        return figures | self._judge_language(held_out, codes_IN)

    def _train_tokenizer(
        self, pairs: Sequence[TrainingPair], held_out: HeldOut, captions: Sequence[str]
    ) -> None:
        for stage in STAGES:
            config = dataclasses.replace(self.stages, stage=stage)
            run = config.run_of_stage
            logger.info("variant=%s stage=%s steps=%d", self.folder.name, stage, run.steps)
            batches = PairBatches(list(pairs), run.batch_size, run.seed)
            run_stage(config, batches, held_out, captions, self.data)

    def _train_language(self, captions: Sequence[str], codes_IN: Tensor) -> None:
        packed = self._pack("train", captions, codes_IN, {"reverse_ratio": 0.5}, self.config.epochs)
        config = self.config.language
        logger.info("variant=%s language steps=%d", self.folder.name, config.num_steps)
        data = dataclasses.replace(config.data, packed=str(packed))
        run = dataclasses.replace(config, output=str(self.folder / "language"), data=data)
        if not train(run).is_finished:
            raise InterruptedError("stopped by SIGTERM; the same command goes on from here")

    def _judge_language(self, held_out: HeldOut, codes_IN: Tensor) -> dict[str, float]:
        """Retrieval by the tokenizer, perplexities by the language model, and pictures that it draws."""
        stage1, words = load_contrastive(self.folder / "qformer")
        tables = tokenizer_retrieval(self.tokenizer, stage1, words, held_out)
        model = AnsweringModel.load(self.folder / "language" / "model", self.config.text_tokenizer)
        losses = {}
        for name, ratio in (("to image", 0.0), ("to text", 1.0)):
            template = {"reverse_ratio": ratio, "learn": "second"}
            packed = self._pack(name.replace(" ", "_"), held_out.captions, codes_IN, template)
            losses[name] = language_losses(model.model, PackedFolder(packed), num_rows=ALL_ROWS)
        some = slice(self.config.num_prompts)
        prompts: list[list[Content]] = [[caption] for caption in held_out.captions[some]]
        drawn_IN = torch.from_numpy(model.draw_codes(prompts, GREEDY).astype(np.int64))
        _, texts_IE = pair_features(stage1, words, held_out)
        drawn = drawn_figures(self.tokenizer, stage1, drawn_IN, codes_IN[some], texts_IE[some])
        return {
            "R@mean, embeddings": tables["retrieval from causal embeddings (last query)"]["R@mean"],
            "R@mean, codes": tables["retrieval from codes (last query)"]["R@mean"],
            "image perplexity given the caption": losses["to image"]["perplexity_image"],
            "caption perplexity given the codes": losses["to text"]["perplexity_text"],
            **self._judge_captions(model, held_out.captions, codes_IN),
            "sound images without constraint %": image_structure(
                model.model, [model.encode(prompt) for prompt in prompts], model.layout
            )["sound"],
            **{f"drawn codes, {name}": value for name, value in drawn.items()},
        }

    def _judge_captions(
        self, model: AnsweringModel, captions: Sequence[str], codes_IN: Tensor
    ) -> dict[str, float]:
        """CIDEr-D of captions written of held-out codes, and of the same against another image's captions."""
        said = model.texts([[codes] for codes in codes_IN.numpy().astype(np.uint16)], GREEDY)
        others = [*captions[1:], captions[0]]
        return {
            name: caption_tables(
                [
                    {"caption": caption, "references": [reference]}
                    for caption, reference in zip(said, references, strict=True)
                ]
            )["captions"]["CIDEr-D"]
            for name, references in (
                ("captions, CIDEr-D", captions),
                ("captions, CIDEr-D of shuffled pairs", others),
            )
        }

    def _pack(
        self,
        name: str,
        captions: Sequence[str],
        codes_IN: Tensor,
        template: Mapping[str, Any],
        epochs: float = 1,
    ) -> Path:
        """Packed rows of captions and codes, in a folder of this name."""
        codes = codes_IN.numpy().astype(np.uint16)
        tokens = write_coded_pairs(self.folder / "tokens" / name, captions, codes, self.fingerprint)
        return pack_coded_pairs(
            tokens,
            self.folder / "packed" / name,
            self.config.text_tokenizer,
            seq_length=self.config.seq_length,
            template=template,
            epochs=epochs,
        )


def frequency_perplexity(train_IN: Tensor, held_out_IN: Tensor, num_codes: int) -> float:
    """Perplexity of held-out codes by how often training pictures have each (add one): what a language model
    that knows nothing but frequencies would reach."""
    counts_E = torch.bincount(train_IN.flatten(), minlength=num_codes).double() + 1
    return float(torch.exp(-(counts_E / counts_E.sum()).log()[held_out_IN.flatten()].mean()))


if __name__ == "__main__":
    sys.exit(run_job(main, (FloatingPointError, NonFiniteError)))
