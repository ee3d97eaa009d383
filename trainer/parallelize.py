"""One plain model over many devices: PyTorch's own sharding, tensor and sequence parallelism, nothing by
hand.

The device mesh has four dimensions, outermost first: ``pipeline``, ``replicate``, ``shard``, ``tensor``.
Data is divided over replicate x shard; the ranks of a tensor or pipeline group see the same sequences.
Order of wrapping: tensor parallel, activation checkpointing, compile, shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from trainer.llama import Llama, LlamaConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks each kind of parallelism takes; their product is the number of processes."""

    replicate: int = 1
    """Copies of the sharded model (HSDP, or plain data parallelism with ``shard`` 1)."""
    shard: int = -1
    """Ranks that share one copy's parameters (FSDP2); -1 takes what is left."""
    tensor: int = 1
    """Ranks that divide each matrix, the sequence between them, and the vocabulary of the loss."""
    pipeline: int = 1
    """Ranks that divide the layers."""
    schedule: str = "1F1B"
    """Of the pipeline: 1F1B, GPipe, Interleaved1F1B, InterleavedZeroBubble or ZBVZeroBubble."""
    stages_per_rank: int = 1
    """Above 1 for the interleaved and zero-bubble schedules; ZBVZeroBubble needs 2."""
    precision: str = "fp32"
    """``bf16`` computes in bf16 on fp32 weights; gradients are reduced in fp32."""
    keeps_full_gradients: bool = False
    """Between micro-batches every rank holds the fp32 gradients of the whole model (4 bytes a trained
    parameter) and reduces them once a step; otherwise it reduces after each and holds its shard alone."""
    activation_checkpointing: str = "none"
    """``selective`` keeps attention and every second matrix product, ``full`` only the input of a layer."""
    is_compiled: bool = False
    """``torch.compile`` each layer."""
    is_fp8: bool = False
    """Matrix products of the layers in fp8 (torchao, CUDA 8.9 and up)."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"parallel.precision must be one of {list(PRECISIONS)}, got {self.precision!r}")
        if self.activation_checkpointing not in _CHECKPOINTING:
            raise ValueError(
                f"parallel.activation_checkpointing must be one of {_CHECKPOINTING}, "
                f"got {self.activation_checkpointing!r}"
            )
        for name in ("replicate", "tensor", "pipeline", "stages_per_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} must be at least 1, got {getattr(self, name)}")

    def shard_ranks(self, world_size: int) -> int:
        """``shard``, with -1 resolved."""
        others = self.replicate * self.tensor * self.pipeline
        shard = self.shard if self.shard > 0 else max(1, world_size // others)
        if shard * others != world_size:
            raise ValueError(
                "parallel.replicate x shard x tensor x pipeline = "
                f"{self.replicate} x {shard} x {self.tensor} x {self.pipeline} "
                f"does not make the {world_size} processes of this run; start as many with torchrun, "
                "or change parallel"
            )
        return shard


@dataclass(frozen=True)
class Meshes:
    """The device mesh and this rank's place in it."""

    world: DeviceMesh
    config: ParallelConfig

    @classmethod
    def build(cls, config: ParallelConfig, device_type: str) -> "Meshes":
        world_size = torch.distributed.get_world_size()
        shape = (config.pipeline, config.replicate, config.shard_ranks(world_size), config.tensor)
        names = ("pipeline", "replicate", "shard", "tensor")
        return cls(init_device_mesh(device_type, shape, mesh_dim_names=names), config)

    @property
    def data_ranks(self) -> int:
        return self.world["replicate"].size() * self.world["shard"].size()

    @property
    def data_rank(self) -> int:
        replicate, shard = self.world["replicate"], self.world["shard"]
        return replicate.get_local_rank() * shard.size() + shard.get_local_rank()

    @property
    def pipeline(self) -> DeviceMesh | None:
        return self.world["pipeline"] if self.config.pipeline > 1 else None

    @property
    def copies_of_data(self) -> int:
        """Ranks that see the same sequences."""
        return self.config.pipeline * self.config.tensor

    def sharding(self) -> DeviceMesh:
        """The mesh over which parameters are sharded, two-dimensional where copies exist."""
        return self.world["replicate", "shard"] if self.config.replicate > 1 else self.world["shard"]


def check_divides(config: LlamaConfig, parallel: ParallelConfig, seq_length: int) -> None:
    """Raise ValueError when tensor parallelism does not divide the model, or its tables are tied."""
    if config.is_tied and parallel.tensor > 1:
        raise ValueError(
            "tied embeddings cannot be split by rows; set parallel.tensor to 1, use parallel.shard"
        )
    sizes = {
        "key/value heads": config.num_kv_heads,
        "vocabulary rows": config.vocab_size,
        "ids of a sequence": seq_length,
        "MLP channels": config.mlp_width,
    }
    for name, size in sizes.items():
        if size % parallel.tensor:
            raise ValueError(f"parallel.tensor={parallel.tensor} does not divide the {size} {name}")


def parallelize(model: Llama, meshes: Meshes) -> Llama:
    """Wrap a model, or one pipeline stage, in place; works on the meta device."""
    config = meshes.config
    if config.is_fp8:
        _convert_to_fp8(model)
    if config.tensor > 1:
        parallelize_module(model, meshes.world["tensor"], _tensor_plan(model))
    if config.activation_checkpointing != "none":
        _checkpoint_activations(model, config.activation_checkpointing)
    if config.is_compiled:
        for block in model.layers.values():
            block.compile()
    if meshes.data_ranks > 1 or config.precision != "fp32":
        _shard(model, meshes)
    return model


def _tensor_plan(model: Llama) -> dict[str, ParallelStyle]:
    """Matrices by column then row, norms and residuals by sequence, the vocabulary by rows."""
    layer: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "self_attn": _gathered(),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": _gathered(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
    }
    plan = {f"layers.*.{name}": style for name, style in layer.items()}
    if model.embed_tokens is not None:
        plan["embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    if model.lm_head is not None:
        plan["norm"] = SequenceParallel()
        plan["lm_head"] = VocabularyParallel()
    return plan


def _gathered() -> ParallelStyle:
    """Hidden states, split by sequence, are gathered; the context beside them is left alone."""
    return PrepareModuleInput(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None))


class VocabularyParallel(ParallelStyle):
    """The head's rows over the ranks; hidden states, split by sequence, are gathered before it.

    Its output is left alone: losses are plain tensors already (``ColwiseParallel`` would expect logits).
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # Its annotation has hooks return nothing; what this one returns becomes the input.
        gather_input: Any = self._gather_input
        return distribute_module(module, device_mesh, self._shard_rows, gather_input)

    @staticmethod
    def _shard_rows(_name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            sharded = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))

    @staticmethod
    def _gather_input(_module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        hidden = inputs[0]
        if not isinstance(hidden, DTensor):
            hidden = DTensor.from_local(hidden, mesh, [Shard(1)], run_check=False)
        return hidden.redistribute(mesh, [Replicate()]), *inputs[1:]


def _checkpoint_activations(model: Llama, mode: str) -> None:
    options: dict[str, Any] = {"context_fn": _selective_contexts} if mode == "selective" else {}
    for name, block in model.layers.items():
        model.layers[name] = checkpoint_wrapper(block, preserve_rng_state=True, **options)


def _selective_contexts() -> Any:
    """Keep attention and every second matrix product; the rest is computed again in the backward pass."""
    counts = {False: 0, True: 0}
    attention_ops = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
    }

    def policy(context: Any, op: Callable[..., Any], *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        if op in (torch.ops.aten.mm.default, torch.ops.aten._scaled_mm.default):
            counts[context.is_recompute] += 1
            is_kept = counts[context.is_recompute] % 2 == 1
        else:
            is_kept = op in attention_ops or "_varlen_attn" in str(op)
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _shard(model: Llama, meshes: Meshes) -> None:
    """FSDP2 or HSDP, layer by layer; gradients are summed, since the loss is already divided by all ids."""
    policy = MixedPrecisionPolicy(
        param_dtype=PRECISIONS[meshes.config.precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    shard: Callable[[nn.Module], Any] = partial(
        fully_shard,
        mesh=meshes.sharding(),
        mp_policy=policy,
        # A stage runs many micro-batches in a row: gathering its layers each time would dominate.
        reshard_after_forward=meshes.config.pipeline == 1,
    )
    for block in model.layers.values():
        shard(block)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def set_gradient_sync(model: nn.Module, config: ParallelConfig, is_last: bool) -> None:
    """Say what the next backward pass does with its gradients; ``is_last`` of the step's micro-batches.

    Copies of the model (``replicate``) are always reduced in the last alone.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last or not config.keeps_full_gradients)
        model.set_requires_all_reduce(is_last)
        model.set_is_last_backward(is_last)


def _convert_to_fp8(model: Llama) -> None:
    if not has_fp8():
        raise ValueError("parallel.is_fp8 needs a GPU of compute capability 8.9 or above; set it to false")
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError as error:
        raise ValueError("parallel.is_fp8 needs torchao: pip install torchao, or set it to false") from error
    convert_to_float8_training(model, module_filter_fn=lambda _module, name: name.startswith("layers."))


def has_fp8() -> bool:
    """Whether the GPU multiplies in fp8. (torch does on the CPU as well, which serves the tests alone.)"""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
