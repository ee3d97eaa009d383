"""The stand-in for a trained start of stage 1: queries tell components of thumbnails, coarse to fine."""

import pytest
import torch

from tests.tokenizer.conftest import Golden
from tokenizer.thumbnail import ThumbnailComponents, ThumbnailTask, thumbnails

NUM_QUERIES, WIDTH, PER_QUERY = 3, 6, 2


@pytest.fixture
def pictures(tiny: Golden) -> torch.Tensor:
    images = torch.as_tensor(tiny.images)
    return torch.cat([images, images.flip(2), images.flip(1), 255 - images])


@pytest.fixture
def task(pictures: torch.Tensor) -> ThumbnailTask:
    task = ThumbnailTask(NUM_QUERIES, WIDTH, PER_QUERY, torch.Generator().manual_seed(0))
    task.components.fit(pictures)
    return task


def test_components_of_fitted_pictures_have_mean_square_one_and_fall(pictures: torch.Tensor) -> None:
    components = ThumbnailComponents(6)
    components.fit(pictures)
    values = components(pictures)
    assert values.square().mean() == pytest.approx(1, abs=1e-4)
    assert values.mean(dim=0).abs().max() < 1e-3
    spread = values.std(dim=0)
    assert (spread[:-1] >= spread[1:]).all()


def test_many_components_give_the_thumbnail_back(pictures: torch.Tensor) -> None:
    components = ThumbnailComponents(len(pictures) - 1)
    components.fit(pictures)
    told = (components(pictures) / components.scale_K) @ components.components_PK.T + components.mean_P
    torch.testing.assert_close(told, thumbnails(pictures).flatten(1), atol=2e-3, rtol=0)


def test_each_query_answers_for_its_own_group(pictures: torch.Tensor, task: ThumbnailTask) -> None:
    target = task.components(pictures)
    queries = torch.randn(len(pictures), NUM_QUERIES, WIDTH, requires_grad=True)
    only_last_is_wrong = task.weight_NDK.detach()
    told = torch.einsum("bnd,ndk->bnk", queries.detach(), only_last_is_wrong).flatten(1)
    target = torch.cat([told[:, :-PER_QUERY], target[:, -PER_QUERY:]], dim=1)
    task(queries, target).backward()
    assert queries.grad is not None
    assert queries.grad[:, :-1].abs().max() < 1e-6
    assert queries.grad[:, -1].abs().max() > 1e-4


def test_the_task_can_be_learnt(pictures: torch.Tensor, task: ThumbnailTask) -> None:
    """Embeddings that hold the answer are read to the end."""
    target = task.components(pictures)
    queries = torch.zeros(len(pictures), NUM_QUERIES, WIDTH)
    queries[:, :, :PER_QUERY] = target.view(-1, NUM_QUERIES, PER_QUERY)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = task(queries, target)
        loss.backward()
        optimizer.step()
    assert loss < 1e-3
