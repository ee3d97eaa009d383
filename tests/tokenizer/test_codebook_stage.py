"""Stage 2 against the published code: codes, losses, gradients, and its two quirks."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.tokenizer.conftest import Golden, read_golden
from tests.tokenizer.training_golden import (
    LOSS_TOLERANCE,
    VALUE_TOLERANCE,
    official_gradients,
    relative_error,
    shared_golden,
)
from tokenizer.codebook_stage import RELEASED, CodebookConfig, CodebookModel, Quantized, vq_loss
from tokenizer.official_names import official_layout
from tokenizer.seed import SeedModel


@pytest.fixture(scope="module")
def reverse() -> Golden:
    golden = read_golden("reverse")
    golden.arrays.update(np.load(golden.directory / "training.npz"))
    return golden


def trainable(golden: Golden) -> SeedModel:
    return golden.model().requires_grad_(True)


def run(golden: Golden, stage: CodebookConfig) -> tuple[CodebookModel, Quantized]:
    """The golden batch in eval mode, as the goldens were made, with gradients."""
    model = CodebookModel(trainable(golden), stage).eval()
    out = model(torch.as_tensor(golden.images), torch.as_tensor(golden["clip_target"]))
    out.loss.backward()
    return model, out


def test_losses_and_codes_equal_the_published_code(reverse: Golden) -> None:
    _, out = run(reverse, RELEASED)
    for ours, name in (
        (out.loss, "loss"),
        (out.loss_vq, "loss_embed"),
        (out.loss_reconstruction, "loss_recon_s"),
        (out.loss_generation, "loss_distil_image"),
    ):
        assert abs(ours.item() - reverse[name]) < LOSS_TOLERANCE, name
    assert np.array_equal(out.codes_BN.numpy(), reverse["codes"])
    for tensor, name in (
        (out.z_BNC, "encode_task_out"),
        (out.recon_BND, "recon"),
        (out.generation_BF, "generation_embedding"),
    ):
        assert relative_error(tensor, reverse[name]) < VALUE_TOLERANCE, name


def test_gradients_equal_the_published_code(reverse: Golden) -> None:
    model, _ = run(reverse, RELEASED)
    ours = official_gradients(model.model, official_layout(model.model.config))
    names = [name for name in reverse.arrays if name.startswith("grad/") and "quantize" not in name]
    assert len(names) == 19
    for name in names:
        assert relative_error(ours[name.removeprefix("grad/")], reverse[name]) < VALUE_TOLERANCE, name
    codebook = ours["quantize.embedding.weight"]
    rows = reverse["grad/quantize.embedding.weight/rows"]
    assert relative_error(codebook[rows], reverse["grad/quantize.embedding.weight/values"]) < VALUE_TOLERANCE
    assert codebook.abs().sum(dim=1).nonzero().flatten().tolist() == rows.tolist()


def test_the_encoder_gets_no_gradient(reverse: Golden) -> None:
    model, _ = run(reverse, RELEASED)
    for name, parameter in model.model.named_parameters():
        frozen = name.startswith(("vit.", "ln_vision.", "qformer."))
        assert (parameter.grad is None) == frozen, name


def test_default_weighting_is_the_papers(reverse: Golden) -> None:
    """Not legacy: same loss and codes, a codebook gradient four times as large, another encoder gradient."""
    released, theirs = run(reverse, RELEASED)
    default, ours = run(reverse, CodebookConfig())
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
    ratio = default.model.codebook.weight.grad.norm() / released.model.codebook.weight.grad.norm()
    assert ratio.item() == pytest.approx(4, rel=1e-4)
    first = [model.model.encode_task_layer[0].weight.grad for model in (default, released)]
    assert ((first[0] - first[1]).norm() / first[1].norm()).item() > 0.3


@pytest.mark.parametrize("name", ["tiny", "tiny512"])
def test_vq_loss_equals_the_published_quantizer(name: str) -> None:
    golden = read_golden(name)
    model = trainable(golden)
    z = torch.tensor(golden["encode_task_out"], requires_grad=True)
    loss = vq_loss(z, model.codebook.vectors(model.codebook.nearest(z.detach())), 0.25, legacy=True)
    loss.backward()
    assert abs(loss.item() - golden["vq_loss"]) < LOSS_TOLERANCE
    assert relative_error(z.grad, golden["vq_grad_z"]) < VALUE_TOLERANCE
    rows = golden["vq_unique_codes"]
    gradient = model.codebook.weight.grad
    assert relative_error(gradient[rows], golden["vq_grad_codebook"]) < VALUE_TOLERANCE
    assert int((gradient.abs().sum(dim=1) > 0).sum()) == len(rows)


def test_vq_loss_gradients_are_what_the_formula_says() -> None:
    rng = torch.Generator().manual_seed(0)
    z, vectors = (torch.randn(5, 3, generator=rng).requires_grad_() for _ in range(2))
    for legacy, codebook_weight, commitment_weight in ((True, 0.25, 1.0), (False, 1.0, 0.25)):
        z.grad = vectors.grad = None
        vq_loss(z, vectors, 0.25, legacy).backward()
        slope = 2 * (z - vectors).detach() / z.numel()
        torch.testing.assert_close(z.grad, commitment_weight * slope)
        torch.testing.assert_close(vectors.grad, -codebook_weight * slope)


def test_training_mode_is_repeatable_by_default_and_noisy_as_released(reverse: Golden) -> None:
    """Published quirk: dropout stays active in the frozen Q-Former, so codes change from step to step."""
    images = torch.as_tensor(reverse.images)
    default = CodebookModel(trainable(reverse), CodebookConfig()).train()
    assert torch.equal(default.encode(images), default.encode(images))
    released = CodebookModel(trainable(reverse), RELEASED).train()
    assert not torch.equal(released.encode(images), released.encode(images))
    assert not released.model.vit.training


@pytest.mark.shared
@pytest.mark.skipif(
    not shared_golden("stage2/dropout_note.json").is_file(), reason="the large golden sets are not here"
)
def test_released_dropout_has_the_published_statistics(reverse: Golden) -> None:
    """Mean losses over 20 seeds, in training mode, as the published loop would see them."""
    note = json.loads(shared_golden("stage2/dropout_note.json").read_text())["released_train_mode"]
    model = CodebookModel(trainable(reverse), RELEASED).train()
    images, target = torch.as_tensor(reverse.images), torch.as_tensor(reverse["clip_target"])
    runs, changed = [], []
    with torch.no_grad():
        for seed in range(20):
            torch.manual_seed(seed)
            out = model(images, target)
            losses = (out.loss, out.loss_vq, out.loss_reconstruction, out.loss_generation)
            runs.append([loss.item() for loss in losses])
            changed.append(float((out.codes_BN.numpy() != reverse["codes"]).mean()))
    error_of_mean = np.array(note["std"]) * np.sqrt(2 / 20)
    assert (np.abs(np.mean(runs, axis=0) - note["mean"]) < 4 * error_of_mean).all()
    assert (np.std(runs, axis=0) / note["std"]).max() < 2
    assert np.mean(changed) == pytest.approx(note["fraction_of_codes_changed_mean"], abs=0.05)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="vq_weight"):
        CodebookConfig(vq_weight=-1.0)
    with pytest.raises(ValueError, match="dropout"):
        dataclasses.replace(RELEASED, dropout=1.0)
