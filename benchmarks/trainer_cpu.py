"""Ids a second of training on the CPU: this trainer against transformers, model against model and packed.

    OMP_NUM_THREADS=1 python benchmarks/trainer_cpu.py

Same weights, same documents, fp32, forward and backward with loss, no optimizer. Three comparisons:

* dense: one document a row, all of the full length: model against model, no advantage of packing
* padded: pairs of 60 to 120 ids; theirs in padded batches with a mask, ours packed
* packed: the same pairs; theirs packed too, by its own path (position ids that restart, block-diagonal mask)

Rates count ids of documents, not padding, per second of processor time (one thread), so that other work on
the machine blurs them less. Best of several rounds, the contestants in turn.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers

from schemas.vocabulary import VocabularyLayout
from trainer.huggingface import config_fields
from trainer.llama import Llama, LlamaConfig
from trainer.weights import fill_parameters, random_weights

LENGTH = 512
ROWS = 1
LAYOUT = VocabularyLayout(300)
SHAPE = LlamaConfig(
    vocab_size=LAYOUT.padded_size,
    width=384,
    num_layers=8,
    num_heads=6,
    num_kv_heads=6,
    head_width=64,
    mlp_width=1056,
)


def models() -> tuple[Llama, transformers.LlamaForCausalLM]:
    """Ours and theirs, with equal weights and as many rows in the table."""
    ours = Llama(SHAPE)
    fill_parameters(ours, random_weights(SHAPE, 0))
    fields = config_fields(SHAPE, LAYOUT, torch.float32) | {"vocab_size": SHAPE.vocab_size}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields, attn_implementation="sdpa"))
    theirs.load_state_dict(
        {n if n.startswith("lm_head") else f"model.{n}": p for n, p in ours.named_parameters()}
    )
    return ours, theirs


def documents(kind: str) -> list[torch.Tensor]:
    """Random ids of full rows, or of pairs that fill as many rows."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    if kind == "dense":
        lengths = [LENGTH] * ROWS
    while sum(lengths) < ROWS * LENGTH:
        length = int(torch.randint(60, 121, (1,), generator=generator))
        lengths.append(min(length, ROWS * LENGTH - sum(lengths)))
    return [torch.randint(0, LAYOUT.size, (length,), generator=generator) for length in lengths]


def our_step(model: Llama, parts: list[torch.Tensor]) -> Callable[[], float]:
    ids = torch.cat(parts)[None]
    lengths = torch.tensor([len(part) for part in parts])
    places = torch.cat([torch.arange(len(part)) for part in parts])[None]
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)[None]
    labels = torch.full_like(ids, -100)
    labels[0, :-1] = torch.where(places[0, 1:] > 0, ids[0, 1:], -100)

    def step() -> float:
        model.zero_grad()
        loss = model(ids, places, cu_seqlens, labels).sum() / (labels >= 0).sum()
        loss.backward()
        return float(loss.detach())

    return step


def their_padded_step(model: transformers.LlamaForCausalLM, parts: list[torch.Tensor]) -> Callable[[], float]:
    """Batches of eight, padded to their longest, as a collator does."""
    batches = []
    for start in range(0, len(parts), 8):
        chosen = parts[start : start + 8]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in chosen], batch_first=True)
        batches.append((ids, mask, ids.masked_fill(mask == 0, -100)))
    num_learned = sum(len(part) - 1 for part in parts)

    def step() -> float:
        model.zero_grad()
        total = 0.0
        for ids, mask, labels in batches:
            loss = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=num_learned).loss
            loss.backward()
            total += float(loss.detach())
        return total

    return step


def their_packed_step(model: transformers.LlamaForCausalLM, parts: list[torch.Tensor]) -> Callable[[], float]:
    """One row; restarting positions make its mask block-diagonal."""
    ids = torch.cat(parts)[None]
    places = torch.cat([torch.arange(len(part)) for part in parts])[None]
    labels = ids.masked_fill(places == 0, -100)
    num_learned = int((labels >= 0).sum())

    def step() -> float:
        model.zero_grad()
        outputs = model(
            ids, position_ids=places, labels=labels, num_items_in_batch=num_learned, use_cache=False
        )
        outputs.loss.backward()
        return float(outputs.loss.detach())

    return step


def rates(steps: dict[str, Callable[[], float]], num_ids: int, rounds: int) -> dict[str, float]:
    """Ids a second of each, best round."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - started)
    return {name: round(num_ids / seconds) for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours, theirs = models()
    dense, pairs = documents("dense"), documents("pairs")
    contests = {
        "dense": {"ours": our_step(ours, dense), "transformers": their_padded_step(theirs, dense)},
        "pairs": {
            "ours, packed": our_step(ours, pairs),
            "transformers, padded": their_padded_step(theirs, pairs),
            "transformers, packed": their_packed_step(theirs, pairs),
        },
    }
    for name, steps in contests.items():
        losses = {contestant: round(step(), 5) for contestant, step in steps.items()}
        speeds = rates(steps, ROWS * LENGTH, options.rounds)
        print(json.dumps({"contest": name, "loss": losses, "ids_per_s": speeds}))


if __name__ == "__main__":
    main()
