"""The stand-in for a trained start of stage 1: queries tell components of thumbnails, coarse to fine."""

import pytest
import torch

from tests.tokenizer.conftest import Golden
from tokenizer.thumbnail import ThumbnailComponents, ThumbnailTask, thumbnails

NUM_QUERIES, WIDTH, WINDOW, STRIDE = 3, 6, 4, 2


@pytest.fixture
def pictures(tiny: Golden) -> torch.Tensor:
    images = torch.as_tensor(tiny.images)
    return torch.cat([images, images.flip(2), images.flip(1), 255 - images])


@pytest.fixture
def task(pictures: torch.Tensor) -> ThumbnailTask:
    task = ThumbnailTask(NUM_QUERIES, WIDTH, WINDOW, STRIDE, torch.Generator().manual_seed(0))
    task.components.fit(thumbnails(pictures))
    return task


def test_components_of_fitted_pictures_have_mean_square_one_and_fall(pictures: torch.Tensor) -> None:
    components = ThumbnailComponents(6)
    components.fit(thumbnails(pictures))
    values = components(pictures)
    assert values.square().mean() == pytest.approx(1, abs=1e-4)
    assert values.mean(dim=0).abs().max() < 1e-3
    spread = values.std(dim=0)
    assert (spread[:-1] >= spread[1:]).all()


def test_many_components_give_the_thumbnail_back(pictures: torch.Tensor) -> None:
    components = ThumbnailComponents(len(pictures) - 1)
    components.fit(thumbnails(pictures))
    told = (components(pictures) / components.scale_K) @ components.components_PK.T + components.mean_P
    torch.testing.assert_close(told, thumbnails(pictures).flatten(1), atol=2e-3, rtol=0)


def test_each_query_answers_for_its_own_window(pictures: torch.Tensor, task: ThumbnailTask) -> None:
    """With targets that are right but for the finest components, only the last query is wrong."""
    queries = torch.zeros(len(pictures), NUM_QUERIES, WIDTH, requires_grad=True)
    target = torch.zeros(len(pictures), task.components.num_components)
    target[:, -STRIDE:] = task.components(pictures)[:, -STRIDE:]
    task(queries, target).backward()
    assert queries.grad is not None
    assert not queries.grad[:, :-1].any()
    assert queries.grad[:, -1].abs().max() > 1e-4


def test_the_task_can_be_learnt(pictures: torch.Tensor, task: ThumbnailTask) -> None:
    """Embeddings that hold the answer are read to the end; copies of one embedding are not enough."""
    target = task.components(pictures)
    queries = torch.zeros(len(pictures), NUM_QUERIES, WIDTH)
    queries[:, :, :WINDOW] = target.unfold(1, WINDOW, STRIDE)

    def learnt(queries: torch.Tensor) -> float:
        optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss = task(queries, target)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert learnt(queries) < 1e-3
    assert learnt(queries[:, :1].expand_as(queries)) > 0.1


def test_no_more_components_than_a_thumbnail_has_values() -> None:
    ThumbnailComponents(3072)
    with pytest.raises(ValueError, match=r"3073 components .* lower thumbnail\.window"):
        ThumbnailComponents(3073)
