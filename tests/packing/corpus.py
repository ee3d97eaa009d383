"""Token shards of real texts for tests: emoji names as pairs, pages as interleaved documents, random codes.

Only the codes are made up; texts come from ``samples/``, where their licences stand.
"""

import json
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from schemas.document import Document, ImageSegment, Role, Segment, TextSegment
from schemas.fingerprint import Fingerprint
from schemas.token_shard import ShardCounts, TokenShardFooter, TokenShardWriter
from tests.packing.golden_inputs import SAMPLE_TOKENIZER

ROOT = Path(__file__).parents[2]
FINGERPRINT = Fingerprint({"weights": "abc", "architecture": "tiny", "precision": "fp32"})


@cache
def captions() -> list[str]:
    """Captions of the sample pairs."""
    return [data.decode() for data in members("pairs", ".txt")]


@cache
def paragraphs() -> list[str]:
    """Paragraphs of the sample documents, which are pages of documentation."""
    pages = [json.loads(data)["texts"] for data in members("documents", ".json")]
    parts = (part for page in pages for text in page if text for part in text.split("\n\n"))
    return [part for part in parts if part.strip()]


def members(kind: str, suffix: str) -> Iterator[bytes]:
    """Members of the sample shards of one kind that end so."""
    for path in sorted((ROOT / "samples" / kind).glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(suffix):
                    yield shard.extractfile(member).read()


def image(rng: np.random.Generator, role: Role | None = None) -> ImageSegment:
    return ImageSegment(rng.integers(0, 8192, 32, dtype=np.uint16), role)


def make_pairs(num_documents: int, seed: int = 0) -> list[Document]:
    rng, texts = np.random.default_rng(seed), captions()
    return [
        Document(
            f"pair-{index:06d}",
            (image(rng), TextSegment(f"{texts[int(rng.integers(len(texts)))]} ({index})")),
            json.dumps(
                {"similarity": round(float(rng.random()), 3), "language": "en" if index % 3 else "de"}
            ),
        )
        for index in range(num_documents)
    ]


def make_pages(num_documents: int, seed: int = 1) -> list[Document]:
    """Interleaved documents of 1 to 40 segments: some are longer than a row."""
    rng, texts = np.random.default_rng(seed), paragraphs()
    documents = []
    for index in range(num_documents):
        segments: list[Segment] = []
        for _ in range(int(rng.integers(1, 40))):
            is_image = rng.random() < 0.3
            segments.append(image(rng) if is_image else TextSegment(texts[int(rng.integers(len(texts)))]))
        documents.append(Document(f"page-{index:06d}", (*segments, TextSegment(f"page {index}"))))
    return documents


def write_token_shard(path: Path, documents: list[Document], fingerprint: Fingerprint = FINGERPRINT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    num_images = sum(len(document.images) for document in documents)
    counts = ShardCounts(
        samples_read=len(documents),
        documents_written=len(documents),
        images_read=num_images,
        images_written=num_images,
    )
    with TokenShardWriter(path) as writer:
        for document in documents:
            writer.write(document)
        writer.close(TokenShardFooter("pairs", f"{path.stem}.tar", 1, True, fingerprint, counts))
    return path


def write_corpus(folder: Path, num_pairs: int = 1500, num_pages: int = 120) -> Path:
    """Three shards of pairs, two of pages, one file of JSON lines; the folder."""
    pairs, pages = make_pairs(num_pairs), make_pages(num_pages)
    for index in range(3):
        write_token_shard(folder / "pairs" / f"{index:05d}.parquet", pairs[index::3])
    for index in range(2):
        write_token_shard(folder / "pages" / f"{index:05d}.parquet", pages[index::2])
    lines = [json.dumps({"text": text, "length": len(text)}) for text in paragraphs()]
    (folder / "prose.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def mixture_text(**changes: str) -> str:
    """A mixture file over the corpus; keyword arguments replace or add top-level lines."""
    lines = {
        "text_tokenizer": f"{{path: {SAMPLE_TOKENIZER}}}",
        "seq_length": "512",
        "seed": "7",
        "packing": "{window_documents: 300, windows_per_shard: 2, bucket_ids: 20000, task_rows: 200}",
        "output": "{ids: 150000}",
        "sources": """
  - {name: pairs, paths: [pairs], weight: 2.0, template: {name: pair, reverse_ratio: 0.5}}
  - {name: pages, paths: [pages/*.parquet], weight: 1.0, template: {name: interleaved, max_images: 7}}
  - {name: prose, paths: [prose.jsonl], format: jsonl, weight: 0.5, template: text}""",
    }
    return "\n".join(f"{name}: {value}" for name, value in (lines | changes).items() if value) + "\n"
