#!/usr/bin/env python3
"""Evaluate what was trained; results as JSON and as a Markdown table.

    python jobs/evaluate.py tokenizer --recipe recipes/tokenizer_small.yaml --tokenizer
    out/tokenizer_small/codebook \
        --stage1 out/tokenizer_small/qformer --draw --output out/evaluation/tokenizer
    python jobs/evaluate.py language --model out/pretrain/model --packed out/packed_held_out --output
    out/evaluation/language python jobs/evaluate.py captions --file captions.jsonl --output
    out/evaluation/captions python jobs/evaluate.py answers --file answers.jsonl --output
    out/evaluation/answers
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.strict_yaml import read_yaml
from pipeline.training_pairs import PairDataConfig, split_pairs
from schemas.packed_folder import PackedFolder
from schemas.settings import parse_settings
from tokenizer.augment import AugmentConfig
from tokenizer.text_tokenizer import TextTokenizer
from trainer.contrastive_run import held_out_of
from trainer.evaluation.language_model import image_structure, language_losses
from trainer.evaluation.report import Tables, write_report
from trainer.evaluation.text_scores import answer_tables, caption_tables
from trainer.evaluation.tokenizer_tables import TokenizerEvaluation, tokenizer_tables
from trainer.load_model import load_marks, load_model
from trainer.prompt import encode_prompt


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

    file: Path
    output: Path

    def tables(self) -> Tables:
        return caption_tables(read_json_lines(self.file))


@dataclass(frozen=True, kw_only=True)
class EvaluateAnswers:
    """VQA accuracy; a JSON object a line with ``answer`` and ``annotators``."""

    file: Path
    output: Path

    def tables(self) -> Tables:
        return answer_tables(read_json_lines(self.file))


@dataclass(frozen=True, kw_only=True)
class EvaluateLanguage:
    """A language model on packed rows that it was not trained on: loss and perplexity of text and image
    ids."""

    model: Path
    """Exported folder, or checkpoint."""
    packed: Path
    output: Path
    num_rows: int = 256
    text_tokenizer: str = ""
    """With ``prompts``: the text tokenizer that the rows were packed with."""
    prompts: Path | None = None
    """Captions, one a line: images are drawn of them without constraint, and malformed ones counted."""

    def tables(self) -> Tables:
        model, layout = load_model(self.model)
        tables = {"language model": language_losses(model, PackedFolder(self.packed), self.num_rows)}
        if self.prompts is not None:
            tokenizer = TextTokenizer(self.text_tokenizer)
            if (marks := load_marks(self.model)) is not None:
                tokenizer.use_marks(marks.bos_id, marks.eos_id)
            lines = self.prompts.read_text(encoding="utf-8").splitlines()
            prompts = [encode_prompt([line], tokenizer, layout) for line in lines if line.strip()]
            tables["images drawn without constraint, percent"] = image_structure(model, prompts, layout)
        return tables


Command = (
    Annotated[EvaluateTokenizer, tyro.conf.subcommand("tokenizer")]
    | Annotated[EvaluateLanguage, tyro.conf.subcommand("language")]
    | Annotated[EvaluateCaptions, tyro.conf.subcommand("captions")]
    | Annotated[EvaluateAnswers, tyro.conf.subcommand("answers")]
)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, write, and print the Markdown; the exit status is 2 for wrong settings or data."""
    logging.basicConfig(level=logging.WARNING)
    command = tyro.cli(Command, args=arguments, description=__doc__)
    try:
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
