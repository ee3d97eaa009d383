"""Figures of drawn images: against counting by hand, scipy and TorchScript files, and with a small model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.document import Document, ImageSegment, Role, TextSegment
from tests.trainer.tiny import tiny_model
from tokenizer.text_tokenizer import TextTokenizer
from trainer.answering import AnsweringModel
from trainer.evaluation.documents import captioned_image, fill_prompt, image_question
from trainer.evaluation.drawing import agreement_figures, drawing_tables, picture_tables
from trainer.evaluation.pictures import extract, fid_network, frechet_distance
from trainer.generate import SamplingConfig
from trainer.llama import Llama

SAMPLE = Path(__file__).parents[3] / "samples" / "text_tokenizer"


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, 32).astype(np.uint16)


def embed(codes_in: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes_in.astype(np.float32)) - 512


def test_agreement_by_hand() -> None:
    """Drawing 0 has half of its image's codes and none of the others'; drawing 1 is the image of 2."""
    real = np.stack([codes(seed) for seed in range(3)])
    drawn = real.copy()
    drawn[0, ::2] = (real[:, ::2].max(axis=0) + 1) % 8192
    drawn[1] = real[2]
    table = agreement_figures(drawn, real, embed)
    others = np.mean([(drawn[i] == real[j]).mean() for i in range(3) for j in range(3) if i != j])
    own = np.mean([(drawn[i] == real[i]).mean() for i in range(3)])
    assert table["equal codes, own image %"] == pytest.approx(100 * own)
    assert table["equal codes, another image %"] == pytest.approx(100 * others)
    assert table["R@1 by equal codes"] == pytest.approx(200 / 3)
    assert table["distinct drawings %"] == pytest.approx(200 / 3)
    assert table["chance R@1"] == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="at least two"):
        agreement_figures(drawn[:1], real[:1], embed)


def test_drawings_of_a_small_model_are_sound_only_under_the_constraint() -> None:
    tokenizer = TextTokenizer(SAMPLE)
    torch.manual_seed(0)
    model = Llama(replace(tiny_model().config, vocab_size=tokenizer.layout.padded_size)).eval()
    answering = AnsweringModel(model, tokenizer.layout, tokenizer)
    pairs = [
        captioned_image(Document(str(seed), (ImageSegment(codes(seed)), TextSegment(f"number {seed}"))))
        for seed in range(3)
    ]
    drawn, tables = drawing_tables(answering, pairs, embed, SamplingConfig(num_codes=5), batch_size=2)
    assert drawn.shape == (3, 32)
    assert drawn.max() < 5
    assert tables["images drawn constrained, percent"]["sound"] == 100
    assert tables["images drawn without constraint, percent"]["sound"] == 0  # drawn weights know no structure


def test_frechet_distance_equals_scipy() -> None:
    """The textbook formula with a matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 16)) @ rng.normal(size=(16, 16))
    drawn = rng.normal(size=(150, 16)) @ rng.normal(size=(16, 16)) + 0.5
    covariances = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    difference = real.mean(axis=0) - drawn.mean(axis=0)
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    ours = frechet_distance(torch.from_numpy(real), torch.from_numpy(drawn))
    assert ours == pytest.approx(float(expected), rel=1e-8)


def test_fid_network_of_a_file(tmp_path: Path) -> None:
    """NVIDIA's convention (0..255, ``return_features``) and the plain one give the same features here."""

    class Nvidia(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return x.mean(dim=[2, 3]) / 255 if return_features else x

    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=[2, 3])

    pictures = torch.randint(0, 256, (5, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    features = []
    for name, network in (("nvidia", Nvidia()), ("plain", Plain())):
        torch.jit.script(network).save(str(tmp_path / f"{name}.pt"))
        features.append(extract(fid_network(tmp_path / f"{name}.pt"), pictures))
    assert torch.allclose(features[0], features[1], atol=1e-6)
    assert torch.allclose(features[1], pictures.float().mean(dim=(1, 2)) / 255, atol=1e-6)
    shifted = (pictures // 2).byte()
    tables = picture_tables(shifted, pictures, ["a"] * 5, None, str(tmp_path / "plain.pt"))
    fid = tables["pictures drawn from 5 captions"]["FID"]
    assert fid == pytest.approx(frechet_distance(features[1], extract(Plain(), shifted)), rel=1e-4)
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(ValueError, match="no TorchScript"):
        fid_network(tmp_path / "noise.pt")
    with pytest.raises(FileNotFoundError, match="no file of features"):
        fid_network(tmp_path / "nothing.pt")


def test_documents_become_questions_and_captions() -> None:
    image = ImageSegment(codes(0), Role.USER)
    chat = Document(
        "c",
        (
            TextSegment("Be brief.", Role.SYSTEM),
            image,
            TextSegment("What is it?", Role.USER),
            TextSegment(" A dog. ", Role.ASSISTANT),
            TextSegment("Sure?", Role.USER),
        ),
        '{"answers": ["dog", "a dog"]}',
    )
    asked = image_question(chat)
    assert (asked.question, asked.annotators, len(asked.images)) == ("What is it?", ("A dog.",), 1)
    assert image_question(chat, "answers").annotators == ("dog", "a dog")
    prompt = fill_prompt("{image} Question: {question}\nBrief answer:", asked.images, asked.question)
    assert np.array_equal(prompt[0], image.codes)
    assert prompt[1] == " Question: What is it?\nBrief answer:"
    with pytest.raises(ValueError, match="document c: no question with an answer"):
        image_question(replace(chat, segments=chat.segments[:3]))
    with pytest.raises(ValueError, match="document c: 1 images and 4 texts"):
        captioned_image(chat)
    with pytest.raises(ValueError, match="once"):
        fill_prompt("no image", [])
    pair = Document("p", (ImageSegment(codes(1)), TextSegment("a cat")), '{"captions": ["one cat"], "n": 1}')
    assert captioned_image(pair, "captions").references == ("a cat", "one cat")
    with pytest.raises(ValueError, match="no list of strings"):
        captioned_image(pair, "n")
