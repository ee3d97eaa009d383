#!/usr/bin/env python3
"""Evaluate what was trained; results as JSON and as a Markdown table. ``COMMAND --help`` lists the settings.

    python jobs/evaluate.py tokenizer --recipe recipes/tokenizer_small.yaml --draw \
        --tokenizer out/small/codebook --stage1 out/small/qformer --output out/tokenizer
    python jobs/evaluate.py language --model out/run/model --packed out/packed_held_out --output out/language
    python jobs/evaluate.py captioning --model out/run/model --tokens tokens/coco --output out/captioning
    python jobs/evaluate.py questions --model out/run/model --tokens tokens/vqa --output out/questions
    python jobs/evaluate.py drawing --model out/run/model --tokens tokens/coco --output out/drawing
    python jobs/evaluate.py captions --input captions.jsonl --output out/captions
    python jobs/evaluate.py answers --input answers.jsonl --output out/answers

``--tokens`` are token shards, as the tokenization jobs write them; the model reads and draws codes.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.evaluate_generation import EvaluateCaptioning, EvaluateDrawing, EvaluateQuestions
from pipeline.one_line_errors import in_one_line
from pipeline.strict_yaml import read_yaml
from pipeline.training_pairs import PairDataConfig, split_pairs
from schemas.packed_folder import PackedFolder
from schemas.settings import parse_settings
from tokenizer.augment import AugmentConfig
from trainer.evaluation.language_model import language_losses
from trainer.evaluation.report import Tables, write_report
from trainer.evaluation.text_scores import answer_tables, caption_tables
from trainer.evaluation.tokenizer_tables import TokenizerEvaluation, tokenizer_tables
from trainer.load_model import check_codebook, load_model
from trainer.stage_data import held_out_of


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizer(TokenizerEvaluation):
    """Retrieval, codes and pictures of a tokenizer on the held-out pairs of a recipe."""

    recipe: Path
    """Configuration of the training run: its ``data`` and ``augment`` decide what is held out, and how it is
    varied."""
    output: Path
    """Results, without suffix."""

    def tables(self) -> Tables:
        entries = read_yaml(self.recipe)
        _, kept = split_pairs(parse_settings(PairDataConfig, entries.get("data", {}), "data."))
        augment = parse_settings(AugmentConfig, entries.get("augment", {}), "augment.")
        return tokenizer_tables(self, held_out_of(kept), augment)


@dataclass(frozen=True, kw_only=True)
class EvaluateCaptions:
    """CIDEr-D and BLEU; a JSON object a line with ``caption`` and ``references``."""

    input: Path
    """Rows made elsewhere."""
    output: Path
    """Results, without suffix."""

    def tables(self) -> Tables:
        return caption_tables(read_json_lines(self.input))


@dataclass(frozen=True, kw_only=True)
class EvaluateAnswers:
    """VQA accuracy; a JSON object a line with ``answer`` and ``annotators``."""

    input: Path
    """Rows made elsewhere."""
    output: Path
    """Results, without suffix."""

    def tables(self) -> Tables:
        return answer_tables(read_json_lines(self.input))


@dataclass(frozen=True, kw_only=True)
class EvaluateLanguage:
    """A language model on packed rows that it was not trained on: loss and perplexity of text and image
    ids."""

    model: Path
    """Exported folder, or checkpoint."""
    packed: Path
    """Folder of packed shards."""
    output: Path
    """Results, without suffix."""
    limit: int = 256
    """Packed rows at most, the first of the folder."""

    def tables(self) -> Tables:
        model, layout = load_model(self.model)
        rows = PackedFolder(self.packed)
        if rows.vocabulary != layout:
            raise ValueError(
                f"--packed {self.packed}: {rows.vocabulary}, {self.model} has {layout}; pack them with the "
                "text tokenizer of the model's data"
            )
        check_codebook(self.model, rows.footer.codebook, f"--packed {self.packed}")
        return {"language model": language_losses(model, rows, self.limit)}


Command = (
    Annotated[EvaluateTokenizer, tyro.conf.subcommand("tokenizer")]
    | Annotated[EvaluateLanguage, tyro.conf.subcommand("language")]
    | Annotated[EvaluateCaptioning, tyro.conf.subcommand("captioning")]
    | Annotated[EvaluateQuestions, tyro.conf.subcommand("questions")]
    | Annotated[EvaluateDrawing, tyro.conf.subcommand("drawing")]
    | Annotated[EvaluateCaptions, tyro.conf.subcommand("captions")]
    | Annotated[EvaluateAnswers, tyro.conf.subcommand("answers")]
)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, write, and print the Markdown; the exit status is 2 for wrong settings or data."""
    logging.basicConfig(level=logging.WARNING)
    try:
        with in_one_line():
            command = tyro.cli(Command, args=arguments, description=__doc__)
        write_report(command.tables(), vars(command), command.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(command.output.with_name(f"{command.output.name}.md").read_text(encoding="utf-8"))
    return 0


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file.

    Raises:
        ValueError: a line is no JSON object; it is named.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
