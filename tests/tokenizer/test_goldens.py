"""Codes equal to the published SEED-2 code on every golden picture, and every float on the way close to it.

The tolerance is what fp32 costs: the published code in fp32 and in fp64 differ by as much (goldens' README).
"""

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import Golden, read_golden
from tokenizer.checkpoint import load_tokenizer

Z_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-5
"""Of the largest entry, for tensors whose entries exceed 1."""


def difference(ours: torch.Tensor, golden: np.ndarray) -> float:
    """Largest absolute difference, over the largest entry where that exceeds 1."""
    return float(np.abs(ours.numpy() - golden).max() / max(1.0, np.abs(golden).max()))


def test_codes_are_equal_on_every_picture(golden: Golden) -> None:
    tokenizer = load_tokenizer(golden.directory, batch_size=4)
    codes = tokenizer.encode(golden.images)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes, golden["codes"])


def test_vectors_before_quantisation_agree(golden: Golden) -> None:
    z = load_tokenizer(golden.directory, batch_size=6).encode_features(golden.images)
    expected = golden["encode_task_out"]
    assert np.abs(z.numpy()[: len(expected)] - expected).max() < Z_TOLERANCE


@torch.inference_mode()
def test_every_stage_of_the_encoder_agrees(golden: Golden) -> None:
    model = golden.model()
    image_features = model.vit(torch.as_tensor(golden.images))
    normed = model.ln_vision(image_features)
    queries = model.qformer(normed)
    stages = {"vit_out": image_features, "ln_vision_out": normed, "query_output": queries}
    stages["qformer_last_hidden"] = queries
    compared = 0
    for name, ours in stages.items():
        if name in golden.arrays:
            assert difference(ours[: len(golden[name])], golden[name]) < RELATIVE_TOLERANCE, name
            compared += 1
    assert compared


@torch.inference_mode()
def test_generation_embedding_agrees(golden: Golden) -> None:
    tokenizer = load_tokenizer(golden.directory)
    embedding = tokenizer.generation_embedding(golden["codes"])
    assert difference(embedding, golden["generation_embedding"]) < RELATIVE_TOLERANCE


@torch.inference_mode()
def test_lifted_codebook_vectors_agree(golden: Golden) -> None:
    model = golden.model()
    codes = torch.as_tensor(golden["codes"][: len(golden["decode_task_out"])])
    lifted = model.decode_task_layer(model.codebook.vectors(codes))
    assert difference(lifted, golden["decode_task_out"]) < RELATIVE_TOLERANCE


@torch.inference_mode()
def test_reconstruction_head_and_blocks_agree() -> None:
    golden = read_golden("reverse")
    model = golden.model()
    lifted = torch.as_tensor(golden["decode_task_out"])
    assert difference(model.reconstruction_head(lifted), golden["recon"]) < RELATIVE_TOLERANCE
    assert difference(model.generation_head.decoder(lifted), golden["blocks_image_out"]) < RELATIVE_TOLERANCE


def test_distances_are_squared_euclidean_and_ties_go_to_the_first(golden: Golden) -> None:
    codebook = golden.model().codebook
    z = torch.as_tensor(golden["encode_task_out"])
    expected = torch.cdist(z.double(), codebook.weight.double()) ** 2
    assert float((codebook.distances(z).double() - expected).abs().max()) < 1e-4
    assert torch.equal(codebook.nearest(z), expected.argmin(-1))
    codebook.weight[5:9] = codebook.weight[300]
    assert codebook.nearest(codebook.weight[300].expand(1, 32, -1)).unique().tolist() == [5]


@torch.no_grad()
def test_encoder_compiles_as_one_graph(tiny: Golden) -> None:
    model, images = tiny.model(), torch.as_tensor(tiny.images)
    model.vit.patch_embed.freeze(torch.float32)
    encode = torch.compile(model.encode, backend="aot_eager", fullgraph=True, dynamic=False)
    np.testing.assert_array_equal(encode(images).numpy(), tiny["codes"])


def test_margins_are_those_of_the_published_code(tiny: Golden) -> None:
    tokenizer = load_tokenizer(tiny.directory, batch_size=6)
    nearest, second = (
        tokenizer.model.codebook.distances(tokenizer.encode_features(tiny.images))
        .topk(2, largest=False)[0]
        .unbind(-1)
    )
    np.testing.assert_allclose(((second - nearest) / nearest).numpy(), tiny["margins"], atol=1e-4)


def test_codes_outside_the_codebook_are_refused(tiny: Golden) -> None:
    tokenizer = load_tokenizer(tiny.directory)
    with pytest.raises(ValueError, match="the codebook has 8192 entries"):
        tokenizer.generation_embedding(tiny["codes"] + 32_000)
    with pytest.raises(ValueError, match=r"expected \(B, 32\)"):
        tokenizer.generation_embedding(tiny["codes"][:, :31])
