"""What only GPUs run, as far as a CPU can tell: shapes and gradients of fake tensors, calls, fp8 numerics."""

import inspect
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.runs import losses_of, metrics_of, packed_folder, run_alone, run_config
from tests.trainer.test_attention import masked_softmax_attention
from tests.trainer.tiny import bounds
from trainer import attention as attention_module
from trainer import parallelize
from trainer.attention import attention, choose_backend
from trainer.llama import Llama
from trainer.lora import LoraConfig
from trainer.metrics import peak_flops
from trainer.parallelize import ParallelConfig, _checkpoint_activations
from trainer.presets import PRESETS


class CountedOps(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[op.name()] += 1
        return op(*args, **(kwargs or {}))


def fill_with_fakes(model: nn.Module) -> None:
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(value.shape, dtype=torch.bfloat16)))


@pytest.mark.parametrize("preset", ["1b", "seed-llama-8b"])
@pytest.mark.parametrize(("checkpointing", "num_forwards"), [("none", 1), ("selective", 1), ("full", 2)])
def test_varlen_attention_runs_forward_and_backward_at_full_size(
    preset: str, checkpointing: str, num_forwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, without memory; only full checkpointing computes attention a second time."""
    monkeypatch.setattr(attention_module, "choose_backend", lambda _q: "varlen")
    with torch.device("meta"):
        model = Llama(replace(PRESETS[preset], num_layers=2, vocab_size=40_320))
    if checkpointing != "none":
        _checkpoint_activations(model, checkpointing)
    with FakeTensorMode(), CountedOps() as ops:
        fill_with_fakes(model)
        ids = torch.zeros(2, 2048, dtype=torch.int64)
        losses = model(ids, ids, torch.zeros(2, 17, dtype=torch.int32), ids)
        losses.sum().backward()
        assert losses.shape == (2, 2048)
        assert losses.dtype == torch.float32
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, torch.bfloat16)
    assert ops.counts["torch_attn::_varlen_attn"] == 2 * num_forwards
    assert ops.counts["torch_attn::_varlen_attn_backward"] == 2


def test_varlen_attention_is_asked_for_what_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's part is taken by the definition; the arguments are bound to the kernel's own signature."""
    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        asked = given.arguments
        assert asked["window_size"] == (-1, 0)  # causal
        assert asked["scale"] is None
        assert asked["enable_gqa"]
        assert asked["cu_seq_q"].dtype == torch.int32
        assert torch.equal(asked["cu_seq_q"], asked["cu_seq_k"])
        assert asked["max_q"] == asked["max_k"] >= int(asked["cu_seq_q"].diff().max())
        return masked_softmax_attention(asked["query"], asked["key"], asked["value"], asked["cu_seq_q"])

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    q, (k, v) = torch.randn(60, 4, 8), torch.randn(2, 60, 2, 8)
    cu_seqlens = bounds([20, 0, 33, 7, 0])[0]
    given = attention(q, k, v, cu_seqlens, 60, backend="varlen")
    torch.testing.assert_close(
        given, attention(q, k, v, cu_seqlens, 60, backend="reference").double(), atol=2e-6, rtol=0
    )


def attend_with_mask(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, cu_seqlens: Tensor, _length: int) -> Tensor:
    """Stands for ``varlen_attn``, one operator of a compiled layer; the reference would break it."""
    num_ids = len(q_THK)
    document_T = attention_module.document_index(cu_seqlens, num_ids)
    is_before = torch.ones(num_ids, num_ids, dtype=torch.bool).tril()
    mask = (document_T[:, None] == document_T) & is_before
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THK, k_TGK, v_TGK))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_compiled_layers_with_adapters_give_the_same_losses(
    checkpointing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the recipes of LoRA; a layer is one graph, and not eager in silence."""
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.2)
    eager = run_config(packed_folder(tmp_path / "packed"), tmp_path / "eager", num_steps=3, lora=lora)
    run_alone(eager)
    monkeypatch.setitem(attention_module.BACKENDS, "reference", attend_with_mask)
    parallel = ParallelConfig(is_compiled=True, activation_checkpointing=checkpointing)
    compiled = replace(eager, output=str(tmp_path / "compiled"), parallel=parallel)
    torch._dynamo.reset()
    counters.clear()
    run_alone(compiled)
    assert losses_of(compiled) == pytest.approx(losses_of(eager), abs=1e-5)
    norms = [[record["grad_norm"] for record in metrics_of(config)] for config in (eager, compiled)]
    assert norms[1] == pytest.approx(norms[0], rel=2e-5)
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((9, 0), torch.bfloat16, "varlen"),
        ((8, 0), torch.float16, "varlen"),
        ((9, 0), torch.float32, "flex"),
        ((7, 5), torch.float16, "flex"),
    ],
)
def test_backends_are_chosen_by_capability(
    capability: tuple[int, int], dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    query: Any = SimpleNamespace(is_cuda=True, dtype=dtype, device="cuda:0")
    assert choose_backend(query) == expected
    assert choose_backend(torch.zeros(1, dtype=dtype)) == "reference"


def test_peak_of_known_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Tesla T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_flops(torch.device("cuda")) == expected
    assert peak_flops(torch.device("cpu")) is None


def test_fp8_layers_train_close_to_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's conversion and torch's fp8 product run on the CPU too; tables and head are left alone."""
    pytest.importorskip("torchao")
    from torchao.float8.float8_linear import Float8Linear

    monkeypatch.setattr(parallelize, "has_fp8", lambda: True)
    convert, converted = parallelize._convert_to_fp8, list[str]()

    def note(model: Llama) -> None:
        convert(model)
        converted.extend(name for name, module in model.named_modules() if isinstance(module, Float8Linear))

    monkeypatch.setattr(parallelize, "_convert_to_fp8", note)
    packed = packed_folder(tmp_path / "packed")
    plain = run_config(packed, tmp_path / "plain", num_steps=3)
    parallel = ParallelConfig(is_fp8=True, activation_checkpointing="selective")
    in_fp8 = replace(plain, output=str(tmp_path / "fp8"), parallel=parallel)
    run_alone(plain)
    run_alone(in_fp8)
    assert losses_of(in_fp8) == pytest.approx(losses_of(plain), abs=2e-2)
    assert losses_of(in_fp8) != losses_of(plain)
    assert len(converted) == 4 * 7
    assert all(name.startswith("layers.") for name in converted)
