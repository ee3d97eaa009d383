"""lmms-eval drives an exported model: through the real package where it is installed, else its interface.

``lmms_interface`` repeats what lmms-eval 0.7.3 has in ``api.model``, ``api.instance`` and
``models.registry_v2``, as far as an adapter sees it.
"""

import abc
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.trainer.runs import trained_export

ROOT = Path(__file__).parents[3]
MODULE = "trainer.evaluation.lmms_eval_model"


def lmms_interface() -> dict[str, types.ModuleType]:
    """Modules by name."""

    class lmms(abc.ABC):  # noqa: N801
        is_simple = True

        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

        @abc.abstractmethod
        def loglikelihood(self, requests: Any) -> Any: ...
        @abc.abstractmethod
        def generate_until(self, requests: Any) -> Any: ...
        @abc.abstractmethod
        def generate_until_multi_round(self, requests: Any) -> Any: ...

    @dataclass
    class Instance:
        request_type: str
        arguments: tuple[Any, ...]
        idx: int
        metadata: Any
        resps: list[Any] = field(default_factory=list)

        @property
        def args(self) -> tuple[Any, ...]:
            return self.arguments

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None

    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    modules = {name: types.ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
    return modules


@pytest.fixture(scope="module")
def adapter() -> Iterator[types.ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("lmms_eval") is None:
            for name, module in lmms_interface().items():
                patch.setitem(sys.modules, name, module)
        yield import_module(MODULE)
        sys.modules.pop(MODULE)


@pytest.fixture(scope="module")
def model(adapter: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An export after two steps, with its text tokenizer inside; a task of two documents."""
    folder = tmp_path_factory.mktemp("lmms")
    loaded = adapter.SeedLlama(
        pretrained=str(trained_export(folder) / "model"), tokenizer="sample", color="clean",
        device="cpu", batch_size="2", max_batch_size=None,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    documents = [
        {"image": Image.fromarray(pixels), "answer": "a dog"},
        {"image": str(folder / "picture.png")},
    ]
    loaded.task_dict = {"task": {"test": documents}}
    return loaded


def request(kind: str, context: str, second: Any, doc_id: int = 0) -> Any:
    from lmms_eval.api.instance import Instance

    def visual(document: dict[str, Any]) -> list[Any]:
        return [document["image"]]

    metadata = {"task": "task", "doc_id": doc_id, "repeats": 1}
    return Instance(kind, (context, second, visual, doc_id, "task", "test"), 0, metadata)


def test_lmms_eval_finds_the_model(adapter: types.ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"seed_llama": f"{MODULE}:manifest"}
    manifest = adapter.manifest()
    assert manifest.model_id == "seed_llama"
    if hasattr(sys.modules["lmms_eval.models"], "MODEL_REGISTRY_V2"):
        registry = sys.modules["lmms_eval.models"].MODEL_REGISTRY_V2
        registry.register_manifest(manifest, overwrite=True)
        assert registry.get_model_class("seed_llama") is adapter.SeedLlama
    else:
        module, _, name = manifest.simple_class_path.rpartition(".")
        assert getattr(import_module(module), name) is adapter.SeedLlama


def test_answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pillow picture and a path to the same give the same answer, alone or in a batch; lmms-eval's switch
    for truncated pictures is no hindrance, and left as it was."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    short = {"until": ["\n\n"], "max_new_tokens": 6, "temperature": 0}
    requests = [request("generate_until", "What?", short, doc_id) for doc_id in (0, 1)]
    together = model.generate_until(requests)
    assert together == [model.generate_until([one])[0] for one in requests]
    assert together[0] == together[1]
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    words = model.answering.texts([model._contents("What?", *requests[0].args[2:])], _greedy(6))
    assert together[0] == words[0]


def _greedy(count: int) -> Any:
    from trainer.generate import SamplingConfig

    return SamplingConfig(temperature=0.0, max_new_ids=count)


def test_log_likelihoods_are_those_of_the_logits(model: Any) -> None:
    import torch

    asked = request("loglikelihood", "What?", " a dog")
    ((total, is_greedy),) = model.loglikelihood([asked])
    answering = model.answering
    ids = answering.encode(model._contents("What?", *asked.args[2:])).tolist()
    expected = 0.0
    for value in answering.tokenizer.encode(" a dog").tolist():
        bounds = torch.tensor([[0, len(ids)]], dtype=torch.int32)
        with torch.no_grad():
            logits = answering.model(torch.tensor([ids]), torch.arange(len(ids))[None], bounds)[0, -1]
        expected += float(logits[: answering.layout.size].log_softmax(dim=-1)[value])
        ids.append(value)
    assert total == pytest.approx(expected, abs=1e-3)
    assert not is_greedy
    by_document = request("loglikelihood", "What?", lambda document: f" {document['answer']}")
    assert model.loglikelihood([by_document])[0][0] == pytest.approx(total)


def test_generation_settings(adapter: types.ModuleType) -> None:
    assert adapter.cut_at("yes. No\nmore", ["\n", "."]) == "yes"
    assert adapter.cut_at("yes", "\n\n") == "yes"
    assert adapter.sampling_of({"max_new_tokens": 7}).temperature == 0
    assert adapter.sampling_of({"temperature": 0.5, "do_sample": False}).temperature == 0
    sampled = adapter.sampling_of({"do_sample": True, "temperature": 0.5, "top_p": 0.9})
    assert (sampled.temperature, sampled.top_p, sampled.max_new_ids) == (0.5, 0.9, 128)


def test_unknown_arguments_are_refused(adapter: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="no arguments colour"):
        adapter.SeedLlama(pretrained="nowhere", colour="clean")


def test_the_release_is_not_fetched_for_a_model_of_other_codes(
    adapter: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(repo: str, *_: object) -> Path:
        raise AssertionError(f"{repo} was asked for")

    monkeypatch.setattr("tokenizer.hub._download", refuse)
    folder = trained_export(tmp_path) / "model"
    with pytest.raises(ValueError, match=r": give tokenizer=sample$"):
        adapter.SeedLlama(pretrained=str(folder), device="cpu")
