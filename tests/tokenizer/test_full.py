"""The full-size SEED-2 network against the published code: 4 pictures, about 6 GiB and a few minutes."""

import json
import time

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import GOLDEN_DIRECTORY, SHARED_GOLDEN_DIRECTORY
from tests.tokenizer.full_recipe import drawn_tensor, full_shapes
from tokenizer.checkpoint import model_from_tensors
from tokenizer.config import SeedTokenizerConfig
from tokenizer.seed import SeedTokenizer
from tokenizer.weights_file import weights_sha256

Z_TOLERANCE = 1e-4


def test_recipe_is_the_one_of_the_goldens() -> None:
    path = SHARED_GOLDEN_DIRECTORY / "full" / "weights_check.json"
    if not path.exists():
        pytest.skip("the shared test data are not here")
    checks = json.loads(path.read_text())["weights"]
    for name, shape in full_shapes().items():
        if np.prod(shape) < 20_000 or ".0." in name:
            checked_shape, _, _, first, last = checks[name]
            values = drawn_tensor(name, shape).flatten()
            assert list(shape) == checked_shape
            assert (values[0].item(), values[-1].item()) == pytest.approx((first, last), abs=1e-6), name


@pytest.mark.slow
def test_full_size_codes_and_vectors() -> None:
    torch.set_num_threads(2)
    golden = np.load(GOLDEN_DIRECTORY / "full" / "golden.npz")
    tensors = {name: drawn_tensor(name, shape) for name, shape in full_shapes().items()}
    start = time.perf_counter()
    digest = weights_sha256(tensors, SeedTokenizerConfig())
    print(f"hashed in {time.perf_counter() - start:.1f} s")
    tokenizer = SeedTokenizer(
        model_from_tensors(tensors, SeedTokenizerConfig(), "recipe"), weights_sha256=digest, batch_size=4
    )
    images, tokens = torch.as_tensor(golden["resized_u8"]), golden["tokens"]
    start = time.perf_counter()
    with torch.inference_mode():
        image_features = tokenizer.model.vit(images)
        normed = tokenizer.model.ln_vision(image_features)
        queries = tokenizer.model.qformer(normed)
        z = tokenizer.model.encode_task_layer(queries)
        codes = tokenizer.model.codebook.nearest(z)
    print(f"{(time.perf_counter() - start) / len(images):.2f} s an image")
    embedding = tokenizer.generation_embedding(golden["codes"])
    stages = {
        "vit_out": image_features[:, tokens, :64],
        "ln_vision_out": normed[:, tokens, :64],
        "qformer_last_hidden": queries[:, :, :64],
        "encode_task_out": z,
        "generation_embedding": embedding,
    }
    errors = {name: float(np.abs(ours.numpy() - golden[name]).max()) for name, ours in stages.items()}
    print(errors)
    np.testing.assert_array_equal(codes.numpy(), golden["codes"])
    assert max(errors.values()) < Z_TOLERANCE, errors
