"""What a language model says and draws, evaluated on documents of token shards, for `jobs/evaluate.py`."""

import itertools
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.inputs import expand_inputs
from pipeline.made_by import check_tokenizer, preprocess_of
from pipeline.packing.metadata_filter import parse_expression, read_metadata
from pipeline.shard_task import TOKEN_SHARD_SUFFIX
from pipeline.storage import open_folder
from pipeline.token_dataset import TokenDataset
from pipeline.training_pairs import read_training_pairs
from schemas.atomic_write import write_atomically
from schemas.document import Document
from schemas.token_shard import read_documents
from tokenizer.detokenizer import load_detokenizer
from trainer.answering import AnsweringModel
from trainer.evaluation.answers import PROMPT as VQA_PROMPT
from trainer.evaluation.documents import (
    PLAIN_CAPTION_PROMPT,
    captioned_image,
    fill_prompt,
    image_question,
)
from trainer.evaluation.drawing import drawing_tables, picture_tables
from trainer.evaluation.pictures import ClipSimilarity
from trainer.evaluation.report import Tables
from trainer.evaluation.text_scores import answer_tables, caption_tables
from trainer.generate import SamplingConfig
from trainer.load_model import check_codebook
from trainer.prompt import Content


@dataclass(frozen=True, kw_only=True)
class OnTokenShards:
    """What evaluations of generated text and images have in common."""

    model: Path
    """Exported folder, or checkpoint."""
    tokens: str
    """Folder of token shards that the model was not trained on."""
    output: Path
    """Results, without suffix."""
    text_tokenizer: str = ""
    """The one that the model's data were packed with; empty: it lies beside the model."""
    where: str = ""
    """Only documents whose metadata this holds for, as in a mixture: ``not skin_tone``."""
    limit: int = 0
    """Documents at most; 0 for all."""
    batch_size: int = 16
    """Prompts answered at once."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:N."""
    precision: str = "fp32"
    """Of the language model: fp32 or bf16."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_new_ids=48))

    @property
    def dataset(self) -> TokenDataset:
        return TokenDataset.open(open_folder(self.tokens))

    def load(self) -> AnsweringModel:
        check_codebook(self.model, self.dataset.manifest.fingerprint.codebook_hex, f"--tokens {self.tokens}")
        return AnsweringModel.load(self.model, self.text_tokenizer, self.device, self.precision)

    def documents(self) -> Iterator[Document]:
        """Documents of the shards in order of their names."""
        folder, names = self.dataset.folder, sorted(self.dataset.done())
        sources = (folder.parquet_source(name + TOKEN_SHARD_SUFFIX) for name in names)
        documents: Iterator[Document] = itertools.chain.from_iterable(
            read_documents(**source) for source in sources
        )
        if self.where:
            holds = parse_expression(self.where, "--where")
            documents = (document for document in documents if holds(read_metadata(document.metadata)))
        return itertools.islice(documents, self.limit or None)

    def answers(self, prompts: list[list[Content]]) -> list[str]:
        if not prompts:
            raise ValueError(f"{self.tokens}: no documents to evaluate")
        return self.load().texts(prompts, self.sampling, self.batch_size)

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """What was generated, beside the results, one JSON object a line."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.output.with_name(f"{self.output.name}.jsonl"), text.encode())


@dataclass(frozen=True, kw_only=True)
class EvaluateCaptioning(OnTokenShards):
    """Captions of images of a pairs dataset: CIDEr-D and BLEU against their own."""

    references_field: str = ""
    """Field of the documents' metadata with further captions (kept by ``--pairs.metadata-fields``)."""
    prompt: str = PLAIN_CAPTION_PROMPT
    """What the model is asked; instruction-tuned models: see ``CHAT_CAPTION_PROMPT``."""

    def tables(self) -> Tables:
        images = [captioned_image(document, self.references_field) for document in self.documents()]
        captions = self.answers([fill_prompt(self.prompt, [image.codes]) for image in images])
        rows = [
            {"key": image.key, "caption": caption, "references": list(image.references)}
            for image, caption in zip(images, captions, strict=True)
        ]
        self.write_rows(rows)
        return caption_tables(rows)


@dataclass(frozen=True, kw_only=True)
class EvaluateQuestions(OnTokenShards):
    """Short answers to questions about images, asked with the paper's prompt: VQA accuracy."""

    answers_field: str = ""
    """Field of the documents' metadata with all annotators' answers (``--chats.metadata-fields``)."""
    prompt: str = VQA_PROMPT
    """What the model is asked; {image} stands for the images, {question} for the question."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_new_ids=16))

    def tables(self) -> Tables:
        questions = [image_question(document, self.answers_field) for document in self.documents()]
        prompts = [fill_prompt(self.prompt, asked.images, asked.question) for asked in questions]
        rows = [
            {"key": asked.key, "question": asked.question, "answer": first_line(answer)}
            | {"annotators": list(asked.annotators)}
            for asked, answer in zip(questions, self.answers(prompts), strict=True)
        ]
        self.write_rows(rows)
        return answer_tables(rows)


@dataclass(frozen=True, kw_only=True)
class EvaluateDrawing(OnTokenShards):
    """Images drawn of captions: codes against those of the captions' images, malformed images with and
    without constraint; with ``pictures`` also CLIP similarity and FID."""

    tokenizer: str = "sample"
    """The image tokenizer that made the shards."""
    pictures: tuple[str, ...] = ()
    """Source shards of these documents; only documents with a picture there are then drawn."""
    diffusion: str | None = None
    """unCLIP pipeline that draws; without, the small pixel decoder."""
    clip: str | None = None
    """CLIP model for the similarities (the paper's measure)."""
    inception: str = ""
    """TorchScript file of the features for FID."""
    gallery: Path | None = None
    """With ``pictures``: where drawn pictures and originals go as PNG, for other tools such as clean-fid."""

    def tables(self) -> Tables:
        pairs = [captioned_image(document) for document in self.documents()]
        real = self._pictures({pair.key for pair in pairs})
        if self.pictures:
            pairs = [pair for pair in pairs if pair.key in real]
            if not pairs:
                raise ValueError(
                    f"--pictures {' '.join(self.pictures)}: no sample has the key of a document in "
                    f"{self.tokens}; give the shards that these token shards were made from"
                )
        detokenizer = load_detokenizer(self.tokenizer, self.diffusion)
        tokenizer = detokenizer.tokenizer
        check_tokenizer(self.dataset, tokenizer, self.tokenizer)
        sampling = replace(self.sampling, num_codes=tokenizer.config.n_embed)
        drawn, tables = drawing_tables(
            self.load(), pairs, tokenizer.generation_embedding, sampling, self.batch_size
        )
        self.write_rows(
            [
                {"key": pair.key, "caption": pair.references[0], "codes": codes.tolist()}
                for pair, codes in zip(pairs, drawn, strict=True)
            ]
        )
        if not real:
            return tables
        pictures = {
            "drawn": detokenizer.draw(drawn),
            "original": np.stack([real[pair.key] for pair in pairs]),
        }
        if self.gallery is not None:
            for name, rows in pictures.items():
                write_pictures(self.gallery / name, [pair.key for pair in pairs], rows)
        return dict(tables) | dict(
            picture_tables(
                torch.from_numpy(pictures["drawn"]),
                torch.from_numpy(pictures["original"]),
                [pair.references[0] for pair in pairs],
                ClipSimilarity(self.clip) if self.clip else None,
                self.inception,
            )
        )

    def _pictures(self, wanted: Container[str]) -> dict[str, NDArray[np.uint8]]:
        """Squashed originals by key, prepared as those of the token shards were."""
        if not self.pictures:
            return {}
        preprocess = preprocess_of(self.dataset)
        pairs = read_training_pairs(
            expand_inputs(self.pictures),
            preprocess,
            is_wanted=lambda group: group.partition("\t")[2] in wanted,
        )
        return {pair.key: pair.image for pair in pairs}


def write_pictures(folder: Path, keys: list[str], pictures: NDArray[np.uint8]) -> None:
    """``NUMBER_KEY.png`` of each picture; a key's slashes become dashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (key, picture) in enumerate(zip(keys, pictures, strict=True)):
        Image.fromarray(picture).save(folder / f"{number:05d}_{key.replace('/', '-')}.png")


def first_line(answer: str) -> str:
    """An answer up to its first line break: models go on with a question of their own."""
    return answer.strip().partition("\n")[0].strip()
