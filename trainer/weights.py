"""Where first weights come from: drawn by name, or read tensor by tensor; the same under any parallelism.

A ``WeightSource`` gives the full value of a parameter by its name. Each rank asks for the parameters that
it holds and keeps its shard, so a model starts equal on one process and on many, and no rank ever holds all
of it.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from schemas.vocabulary import VocabularyLayout
from trainer.llama import LlamaConfig

WeightSource = Callable[[str, torch.Size], Tensor]
"""(parameter name, full shape) -> full value, fp32 or lower, on the CPU."""

INITIAL_STD = 0.02
_GROUP_BYTES = 1 << 30


def random_weights(config: LlamaConfig, seed: int) -> WeightSource:
    """Normal weights of standard deviation 0.02; layers that write to the residual are narrower by sqrt(2 L).

    Each tensor is drawn from a generator seeded by (seed, name), so it depends on nothing else.
    """
    residual_std = INITIAL_STD / math.sqrt(2 * config.num_layers)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else INITIAL_STD
        return torch.randn(shape, generator=named_generator(seed, name)) * std

    return draw


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that is a pure function of (seed, name)."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def grow_table(table_VD: Tensor, layout: VocabularyLayout, name: str, seed: int) -> Tensor:
    """An embedding or head of the text vocabulary, with rows for codes and markers, padded.

    New rows are drawn channel by channel from the mean and the standard deviation of the old ones: rows of
    zeros, or all equal, would tie the 8,194 new ids together at the start. Padding rows are zero.

    Args:
        table_VD: (base_size, D), (size, D) or (padded_size, D); the last two are only padded.
        layout: of the model to be trained.
        name: of the parameter, which seeds the draw.
        seed: of the run.

    Raises:
        ValueError: if the rows fit none of the three sizes.
    """
    num_rows, width = table_VD.shape
    if num_rows not in (layout.base_size, layout.size, layout.padded_size):
        raise ValueError(
            f"{name} has {num_rows} rows; the vocabulary needs {layout.base_size} (text only), {layout.size} "
            f"or {layout.padded_size}. Pack with the text tokenizer that belongs to this model"
        )
    old = table_VD.float()
    if num_rows == layout.base_size:
        noise = torch.randn(layout.size - num_rows, width, generator=named_generator(seed, name))
        old = torch.cat((old, old.mean(dim=0) + noise * old.std(dim=0)))
    return torch.cat((old, old.new_zeros(layout.padded_size - len(old), width)))


def fill_parameters(
    module: nn.Module, source: WeightSource, skip: Callable[[str], bool] | None = None
) -> None:
    """Give every parameter of ``module`` its value; sharded parameters keep their own part.

    Args:
        module: the model or one pipeline stage, on its device, wrapped or not.
        source: of full values.
        skip: names that ``source`` does not know and that are filled elsewhere.
    """
    for group in _groups(module, source, skip):
        options = StateDictOptions(full_state_dict=True, strict=False)
        values: dict[str, Any] = dict(group)  # `dict` is invariant in its values
        result = set_model_state_dict(module, values, options=options)
        assert not result.unexpected_keys


def _groups(
    module: nn.Module, source: WeightSource, skip: Callable[[str], bool] | None
) -> Iterator[dict[str, Tensor]]:
    """Full values by name, about a gigabyte at a time."""
    group: dict[str, Tensor] = {}
    num_bytes = 0
    for wrapped_name, parameter in module.named_parameters():
        name = clean_name(wrapped_name)
        if skip is not None and skip(name):
            continue
        group[name] = source(name, parameter.shape).to(parameter.device, parameter.dtype)
        num_bytes += group[name].nbytes
        if num_bytes > _GROUP_BYTES:
            yield group
            group, num_bytes = {}, 0
    if group:
        yield group


def clean_name(name: str) -> str:
    """A parameter's name without the parts that wrappers put in."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
