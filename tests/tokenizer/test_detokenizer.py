"""Codes to pictures: the unCLIP glue with a toy pipeline, the pixel decoder, the command."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tokenizer.conftest import Golden
from tokenizer.__main__ import main
from tokenizer.checkpoint import load_tokenizer
from tokenizer.detokenizer import Detokenizer, DrawConfig, load_detokenizer, read_codes, tile
from tokenizer.pixel_decoder import SIDE, PixelDecoder, load_pixel_decoder, save_pixel_decoder

WIDTH = 40
"""Of the generation embeddings of the golden set ``tiny``."""
FAST = DrawConfig(steps=3)


@pytest.fixture(scope="module")
def unclip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    from tests.tokenizer.tiny_unclip import save_tiny_unclip

    directory = tmp_path_factory.mktemp("unclip")
    save_tiny_unclip(directory, WIDTH)
    return directory


@pytest.fixture
def unclip(tiny: Golden, unclip_directory: Path) -> Detokenizer:
    return load_detokenizer(str(tiny.directory), str(unclip_directory))


def test_pictures_are_reproducible_and_do_not_depend_on_the_batch(tiny: Golden, unclip: Detokenizer) -> None:
    codes = tiny["codes"][:3]
    pictures = unclip.draw(codes, config=FAST)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, unclip.draw(codes, config=FAST))
    assert np.array_equal(pictures[:1], unclip.draw(codes[:1], config=FAST))
    assert not np.array_equal(pictures, unclip.draw(codes, config=DrawConfig(steps=3, seed=7)))


def test_what_enters_the_denoiser_is_the_generation_embedding(tiny: Golden, unclip_directory: Path) -> None:
    """Guidance, zeros or negative codes, and the noise level, seen from the denoiser's side."""
    from tokenizer.unclip_pipeline import load_unclip

    pipeline = load_unclip(str(unclip_directory))
    seen: list[torch.Tensor] = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["class_labels"]), with_kwargs=True
    )
    positive, negative = (
        torch.tensor(tiny["generation_embedding"][:2]),
        torch.tensor(tiny["generation_embedding"][2:4]),
    )
    pipeline.draw(positive, steps=1)
    pipeline.draw(positive, negative, steps=1)
    pipeline.draw(positive, steps=1, guidance=1.0)
    (zeros, plain), (steered, again), (unguided,) = (labels.split(2) for labels in seen)
    assert not zeros.any()
    assert torch.equal(plain, again)
    torch.testing.assert_close(
        plain[:, :WIDTH], positive, atol=0.05, rtol=0
    )  # level 0 still adds a little noise
    torch.testing.assert_close(steered[:, :WIDTH], negative, atol=0.05, rtol=0)
    torch.testing.assert_close(unguided[:, :WIDTH], positive, atol=0.05, rtol=0)


def test_negative_codes_change_the_picture(tiny: Golden, unclip: Detokenizer) -> None:
    codes = tiny["codes"]
    plain, steered = unclip.draw(codes[:2], config=FAST), unclip.draw(codes[:2], codes[2:3], FAST)
    assert not np.array_equal(plain, steered)
    assert np.array_equal(plain, unclip.draw(codes[:2], config=FAST))  # nothing stays behind


def test_an_embedding_of_another_width_is_refused(unclip_directory: Path) -> None:
    from tokenizer.unclip_pipeline import load_unclip

    with pytest.raises(ValueError, match="48 wide, the diffusion model takes 40"):
        load_unclip(str(unclip_directory)).draw(torch.zeros(1, 48))


def test_a_missing_pipeline_is_named(tiny: Golden, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(FileNotFoundError, match="not found or not complete"):
        load_detokenizer(str(tiny.directory), str(tmp_path / "nothing"))


def test_pixel_decoder_survives_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(12)
    save_pixel_decoder(decoder, tmp_path, torch.float32)
    embedding = torch.randn(3, 12)
    pictures = load_pixel_decoder(tmp_path).draw(embedding)
    assert pictures.shape == (3, SIDE, SIDE, 3)
    assert torch.equal(pictures, decoder.draw(embedding))
    (tmp_path / "pixel_decoder.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a pixel decoder"):
        load_pixel_decoder(tmp_path)


def test_the_pixel_decoder_must_fit_the_tokenizer(tiny: Golden, tmp_path: Path) -> None:
    for path in tiny.directory.iterdir():
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match="no pixel decoder"):
        load_detokenizer(str(tmp_path))
    save_pixel_decoder(PixelDecoder(7), tmp_path)
    with pytest.raises(ValueError, match="embeddings 7 wide, the tokenizer makes 40"):
        load_detokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "write",
    [
        lambda codes: json.dumps(codes),
        lambda codes: json.dumps([{"codes": row} for row in codes]),
        lambda codes: "\n".join(json.dumps({"image": "x", "codes": row}) for row in codes),
        lambda codes: "\n".join(json.dumps(row) for row in codes) + "\n",
        lambda codes: "\n".join(json.dumps({"answer": ["A ", {"codes": row}, "dog"]}) for row in codes),
    ],
    ids=["lists", "objects", "lines of encode", "lines of lists", "lines of generate"],
)
def test_code_files(write: Callable[[list[list[int]]], str], tmp_path: Path) -> None:
    path = tmp_path / "codes.json"
    path.write_text(write([[1, 2, 3], [4, 5, 6]]))
    assert read_codes(path).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '["a"]', "[1.5]", "[[1], [2, 3]]", '{"image": "x"}', "[true]", '{"answer": ["words"]}'],
)
def test_other_code_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"codes\.json"):
        read_codes(path)


def test_pictures_are_tiled_on_white() -> None:
    pictures = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((9, 2, 4, 3), np.uint8)
    sheet = tile(pictures)
    assert sheet.shape == (4, 32, 3)
    assert (sheet[2:, :4] == 8).all()
    assert (sheet[2:, 4:] == 255).all()


def test_command_with_a_diffusion_model(tiny: Golden, unclip_directory: Path, tmp_path: Path) -> None:
    codes, output = tmp_path / "codes.json", tmp_path / "out.png"
    codes.write_text(json.dumps(tiny["codes"][:2].tolist()))
    command = ["decode", str(codes), "--tokenizer", str(tiny.directory), "--output", str(output)]
    assert main([*command, "--diffusion", str(unclip_directory), "--steps", "3"]) == 0
    expected = load_detokenizer(str(tiny.directory), str(unclip_directory)).draw(
        tiny["codes"][:2], config=FAST
    )
    assert np.array_equal(np.asarray(Image.open(output)), tile(expected))


def test_command_refuses_what_cannot_be(
    tiny: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = tmp_path / "codes.json"
    codes.write_text(json.dumps([[9000] * 32]))
    output = str(tmp_path / "o.png")
    arguments = ["decode", str(codes), "--output", output, "--tokenizer", str(tiny.directory)]
    assert main([*arguments, "--negative", str(codes)]) == 2
    assert "needs --diffusion" in capsys.readouterr().err


def test_codes_outside_the_codebook_are_refused(tiny: Golden) -> None:
    tokenizer = load_tokenizer(tiny.directory)
    detokenizer = Detokenizer(tokenizer, lambda embedding, negative, config: embedding)
    with pytest.raises(ValueError, match="the codebook has 8192"):
        detokenizer.draw(np.full((1, 32), 9000))
