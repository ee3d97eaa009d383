"""Stage 1 against the published code: features, loss, gradients; one process and two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.tokenizer.training_golden import (
    LOSS_TOLERANCE,
    STAGE1,
    VALUE_TOLERANCE,
    official_gradients,
    relative_error,
    stage1_batch,
    stage1_config,
    stage1_model,
)
from tokenizer.contrastive_stage import (
    ContrastiveConfig,
    best_similarity,
    contrast,
    contrastive_layout,
)

LAYOUT = contrastive_layout(stage1_config())


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(STAGE1 / "golden.npz"))


def test_features_and_loss_equal_the_published_code(golden: dict[str, np.ndarray]) -> None:
    out = stage1_model()(*stage1_batch())
    assert abs(out.loss.item() - golden["w1/loss"]) < LOSS_TOLERANCE
    assert relative_error(out.image_BNE, golden["w1/image_feats_all_queries"]) < VALUE_TOLERANCE
    assert relative_error(out.text_BE, golden["w1/text_feat"]) < VALUE_TOLERANCE
    assert relative_error(out.logits_i2t_BG, golden["w1/logits_i2t"]) < VALUE_TOLERANCE
    assert relative_error(out.logits_t2i_BG, golden["w1/logits_t2i"]) < VALUE_TOLERANCE


def test_all_text_positions_equal_the_published_code(golden: dict[str, np.ndarray]) -> None:
    model = stage1_model()
    _, ids, mask = stage1_batch()
    assert (
        relative_error(model.text_branch(model.qformer, ids, mask), golden["w1/text_output"])
        < VALUE_TOLERANCE
    )


def test_gradients_equal_the_published_code(golden: dict[str, np.ndarray]) -> None:
    model = stage1_model()
    model(*stage1_batch()).loss.backward()
    ours = official_gradients(model, LAYOUT)
    names = [name.removeprefix("w1/grad/") for name in golden if name.startswith("w1/grad/")]
    assert len(names) == 13
    for name in names:
        gradient = model.temp.grad if name == "temp" else ours[name]
        assert gradient is not None
        assert relative_error(gradient, golden[f"w1/grad/{name}"]) < VALUE_TOLERANCE, name


def test_gradient_through_the_gathered_side_would_be_seen(golden: dict[str, np.ndarray]) -> None:
    """The mistake that leaves the loss unchanged: both sides of the product with gradient."""
    model = stage1_model()
    images, ids, mask = stage1_batch()
    image_BE = model.image_features(images)[:, -1]
    text_BE = model.text_features(ids, mask)
    logits = image_BE @ text_BE.T / model.temp
    targets = torch.arange(6)
    loss = sum(F.cross_entropy(x, targets, label_smoothing=0.1) for x in (logits, logits.T)) / 2
    assert abs(loss.item() - golden["w1/loss"]) < LOSS_TOLERANCE
    loss.backward()
    assert relative_error(model.qformer.queries.grad, golden["w1/grad/query_tokens"]) > 1


def test_the_vit_is_frozen_and_trains_when_asked_to() -> None:
    frozen, trained = stage1_model(), stage1_model(train_vit=True)
    for model in (frozen, trained):
        model(*stage1_batch(slice(2))).loss.backward()
    assert all(p.grad is None for p in frozen.vit.parameters())
    gradients = official_gradients(trained, LAYOUT)  # refuses key biases that would move
    assert gradients["visual_encoder.blocks.0.attn.q_bias"].abs().max() > 0
    assert gradients["visual_encoder.patch_embed.proj.weight"].abs().max() > 0


def test_padding_of_captions_changes_nothing() -> None:
    model = stage1_model().eval()
    _, ids, mask = stage1_batch(slice(0, 2))
    length = int(mask.sum(dim=1).max())
    short = model.text_features(ids[:, :length], mask[:, :length])
    torch.testing.assert_close(model.text_features(ids, mask), short, atol=1e-6, rtol=0)


def test_a_batch_of_one_pair_runs() -> None:
    """The published code fails here (a bare squeeze); the last batch of an epoch can be one pair."""
    assert stage1_model()(*stage1_batch(slice(1))).loss.isfinite()


def test_maximum_over_queries_is_blip2s_way() -> None:
    torch.manual_seed(0)
    image_BNE = F.normalize(torch.randn(3, 5, 8), dim=-1)
    text_BE = F.normalize(torch.randn(3, 8), dim=-1)
    stage = ContrastiveConfig(vocab_size=1, embed_dim=8, query="max", label_smoothing=0.0)
    out = contrast(image_BNE, text_BE, torch.tensor(0.5), stage)
    for i in range(3):
        for j in range(3):
            best = max(float(image_BNE[i, q] @ text_BE[j]) for q in range(5)) / 0.5
            assert math.isclose(out.logits_i2t_BG[i, j].item(), best, rel_tol=1e-5)
            assert math.isclose(out.logits_t2i_BG[j, i].item(), best, rel_tol=1e-5)


@pytest.mark.parametrize("wanted", ["picture", "text", "both"])
def test_best_similarity_and_its_gradients_are_those_of_the_whole_product(wanted: str) -> None:
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randn(7, 5, 6, generator=rng, dtype=torch.float64, requires_grad=wanted != "text")
    texts = torch.randn(4, 6, generator=rng, dtype=torch.float64, requires_grad=wanted != "picture")
    weights = torch.randn(7, 4, generator=rng, dtype=torch.float64)
    leaves = [tensor for tensor in (pictures, texts) if tensor.requires_grad]
    whole = torch.einsum("pne,te->pnt", pictures, texts).amax(dim=1)
    ours = best_similarity(pictures, texts)
    torch.testing.assert_close(ours, whole)
    expected = torch.autograd.grad((whole * weights).sum(), leaves)
    for gradient, other in zip(torch.autograd.grad((ours * weights).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_settings_change_what_they_name() -> None:
    base = stage1_model()(*stage1_batch()).loss.item()
    for changes, shift in (({"label_smoothing": 0.0}, 0.011), ({"query": "max"}, -1.07)):
        loss = stage1_model(**changes)(*stage1_batch()).loss.item()
        assert abs(abs(loss - base) - abs(shift)) < 0.006, changes  # NOTES of the goldens name the shifts
    assert not stage1_model(learn_temperature=False).temp.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"query": "first"}, {"label_smoothing": 1.0}, {"temperature": 0.0}, {"dropout": -0.1}], ids=str
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ContrastiveConfig(**wrong)  # type: ignore[arg-type]


def two_ranks(rank: int, directory: str) -> None:
    """One of two processes: its own loss and gradients, then those that DDP hands to the optimiser."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    part = slice(3 * rank, 3 * rank + 3)
    alone, averaged = stage1_model(), stage1_model()
    out = alone(*stage1_batch(part))
    out.loss.backward()
    parallel = DistributedDataParallel(averaged)  # must outlive the backward pass
    parallel(*stage1_batch(part)).loss.backward()
    result = {f"own/{k}": v for k, v in official_gradients(alone, LAYOUT).items()}
    result |= {f"mean/{k}": v for k, v in official_gradients(averaged, LAYOUT).items()}
    result |= {"own/temp": alone.temp.grad, "mean/temp": averaged.temp.grad, "loss": out.loss.detach()}
    result |= {
        "logits_i2t": out.logits_i2t_BG.detach(),
        "logits_t2i": out.logits_t2i_BG.detach(),
        "targets": out.targets_B,
    }
    torch.save(result, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_gloo_ranks_equal_the_published_code_and_one_rank(
    tmp_path: Path, golden: dict[str, np.ndarray]
) -> None:
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, result in enumerate(ranks):
        own = f"w2/rank{rank}"
        assert abs(result["loss"].item() - golden[f"{own}/loss"]) < LOSS_TOLERANCE
        assert result["targets"].tolist() == golden[f"{own}/targets"].tolist()
        for name in ("logits_i2t", "logits_t2i"):
            assert relative_error(result[name], golden[f"{own}/{name}"]) < VALUE_TOLERANCE
        check_gradients(result, "own", golden, f"{own}/grad/", 4)
        check_gradients(result, "mean", golden, "w2/mean/grad/", 13)
        check_gradients(result, "mean", golden, "w1/grad/", 13)


def check_gradients(
    result: dict[str, torch.Tensor], kind: str, golden: dict[str, np.ndarray], prefix: str, count: int
) -> None:
    names = [name for name in golden if name.startswith(prefix)]
    assert len(names) == count
    for name in names:
        ours = result[f"{kind}/{name.removeprefix(prefix)}"]
        assert relative_error(ours, golden[name]) < VALUE_TOLERANCE, name


def test_scoring_all_queries_is_a_weighted_mean_of_single_scores() -> None:
    """The last with what is left of the weight, each by itself with the cube of its index."""
    model, (images, ids, mask) = stage1_model(), stage1_batch()
    image_BNE, text_BE = model.image_features(images).detach(), model.text_features(ids, mask).detach()
    image_BNE.requires_grad_()
    num_queries = image_BNE.shape[1]

    def single(query: int) -> torch.Tensor:
        logits = image_BNE[:, query] @ text_BE.T / model.temp
        targets = torch.arange(len(text_BE))
        return sum(F.cross_entropy(x, targets, label_smoothing=0.1) for x in (logits, logits.T)) / 2

    weights = [(index + 1) ** 3 for index in range(num_queries)]
    every = sum(w * single(q) for q, w in enumerate(weights)) / sum(weights)
    out = contrast(image_BNE, text_BE, model.temp, ContrastiveConfig(all_queries=0.25))
    torch.testing.assert_close(out.loss, 0.75 * single(num_queries - 1) + 0.25 * every)
    out.loss.backward()
    assert image_BNE.grad is not None
    assert image_BNE.grad[:, 0].abs().max() > 0


def test_all_queries_go_with_the_last_only() -> None:
    with pytest.raises(ValueError, match="all_queries"):
        ContrastiveConfig(query="max", all_queries=0.5)
