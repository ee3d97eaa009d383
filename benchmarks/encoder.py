#!/usr/bin/env python
"""Encoder speed: ours against the same arithmetic written naively, and against the device's matrix products.

    python benchmarks/encoder.py                  # sample, tiny and mid size, on whatever device is there
    python benchmarks/encoder.py --sizes full --precision bf16 --batch-size 64 --compiled --end-to-end 20000

Naive, ours and matrix products take turns, and medians are shown, so that another load on the machine hits
all three. The ceiling is the matrix-product work of one picture over the fastest large product measured here
in the same precision. With --end-to-end the engine then makes token shards of that many pictures of
`samples/pairs` in four tars, with the same weights, and is held against our encoder alone and the ceiling.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.naive_encoder import NaiveEncoder
from pipeline.worker_tools import EncoderConfig, open_tools
from tokenizer.checkpoint import official_tensors, save_model
from tokenizer.config import SeedTokenizerConfig
from tokenizer.packed_linear import PackedLinear, can_pack
from tokenizer.seed import PRECISIONS, SeedModel, SeedTokenizer
from tokenizer.untrained import SMALL_CONFIG

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "sample": SMALL_CONFIG,  # not the sample tokenizer, which is larger; earlier results have the name
    "tiny": SeedTokenizerConfig(
        vit_width=64, vit_depth=3, vit_heads=4, vit_mlp_hidden=279,
        bert_hidden=48, bert_layers=4, bert_heads=4, bert_intermediate=192, decode_depth=1,
    ),
    "mid": SeedTokenizerConfig(
        vit_width=704, vit_depth=8, vit_heads=8, vit_mlp_hidden=3072,
        bert_hidden=384, bert_layers=4, bert_heads=6, bert_intermediate=1536, decode_depth=1,
    ),
    "full": SeedTokenizerConfig(),
}  # fmt: skip
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices of the ceiling."""


@dataclass(frozen=True)
class Result:
    """One size on one device."""

    size: str
    device: str
    precision: str
    batch_size: int
    gflop_per_image: float
    naive_images_per_s: float
    images_per_s: float
    speedup: float
    ceiling_images_per_s: float
    ceiling_fraction: float
    codes_equal_fraction: float
    end_to_end_images_per_s: float | None = None
    """From tars of JPEGs to committed token shards."""


def measure(size: str, options: argparse.Namespace) -> Result:
    """Time one size."""
    config, dtype, device = SIZES[size], PRECISIONS[options.precision], torch.device(options.device)
    batch_size = options.batch_size
    model = drawn_model(config)
    naive = naive_encoder(model, device, dtype)
    ours = SeedTokenizer(
        model,
        weights_sha256="",
        precision=options.precision,
        batch_size=batch_size,
        device=device,
        compiled=options.compiled,
    )
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, config.img_size, config.img_size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    flop_per_image = flop(naive, images[:1])
    calls = [lambda: naive.encode(images), lambda: ours.launch(images), *products(device, dtype)]
    clock = time.process_time if options.cpu_time else time.perf_counter
    naive_s, ours_s, *product_s = medians(calls, options.repetitions, device, clock)
    ceiling = 2 * PRODUCT_SIDE[device.type] ** 3 / min(product_s) / flop_per_image
    result = Result(
        size=size,
        device=device_name(device),
        precision=options.precision,
        batch_size=batch_size,
        gflop_per_image=flop_per_image / 1e9,
        naive_images_per_s=batch_size / naive_s,
        images_per_s=batch_size / ours_s,
        speedup=naive_s / ours_s,
        ceiling_images_per_s=ceiling,
        ceiling_fraction=batch_size / ours_s / ceiling,
        codes_equal_fraction=float((naive.encode(images) == ours.launch(images)).float().mean()),
    )
    if options.end_to_end:
        del model, naive, ours, calls  # their memory is the engine's now
        result = replace(result, end_to_end_images_per_s=engine_images_per_s(config, options))
    return result


def engine_images_per_s(config: SeedTokenizerConfig, options: argparse.Namespace) -> float:
    """The whole engine with drawn weights of this size, second run of two."""
    from benchmarks.tokenization import Corpus, end_to_end, pairs_setup

    corpus = Corpus.read(ROOT / "samples" / "pairs", options.end_to_end)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(drawn_model(config), folder / "tokenizer")
        encoder = EncoderConfig(
            tokenizer=str(folder / "tokenizer"),
            precision=options.precision,
            batch_size=options.batch_size,
            device=options.device,
            compiled=options.compiled,
        )
        tasks = corpus.write(folder / "tars", 4)
        with open_tools(pairs_setup(encoder, folder / "out", os.cpu_count() or 1)) as tools:
            end_to_end(tools, tasks[:1], 2)
            images_per_s = end_to_end(tools, tasks, 2).rate
    return images_per_s


def naive_encoder(model: SeedModel, device: torch.device, dtype: torch.dtype) -> NaiveEncoder:
    """With copies of the weights: the model's own are freed when its layers are packed."""
    tensors = official_tensors(model).items()
    copies = {name: tensor.detach().to(device, dtype, copy=True) for name, tensor in tensors}
    return NaiveEncoder(copies, model.config)


def device_name(device: torch.device) -> str:
    """What was measured, in words."""
    is_cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_cuda else f"{torch.get_num_threads()} CPU threads"


def products(device: torch.device, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """Large square matrix products: torch's own, and on a CPU in fp32 that of packed layers."""
    side = PRODUCT_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls: list[Callable[[], Tensor]] = [lambda: a @ b]
    if device.type == "cpu" and dtype == torch.float32 and can_pack():
        linear = PackedLinear(torch.nn.Linear(side, side, bias=False))
        calls.append(lambda: linear(a))
    return calls


@torch.inference_mode()
def drawn_model(config: SeedTokenizerConfig) -> SeedModel:
    """Small random weights; what they are does not matter for speed."""
    model = SeedModel(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_norm_weight = "norm" in name.split(".")[-2] and name.endswith("weight")
        parameter.normal_(mean=1.0 if is_norm_weight else 0.0, std=0.03, generator=generator)
        if ".attn.qkv.bias" in name:
            parameter.chunk(3)[1].zero_()
    return model


@torch.inference_mode()
def flop(naive: NaiveEncoder, image: Tensor) -> int:
    """Floating-point operations of the matrix products of one picture."""
    with FlopCounterMode(display=False) as counter:
        naive.encode(image)
    return counter.get_total_flops()


@torch.inference_mode()
def medians(
    calls: list[Callable[[], Tensor]], repetitions: int, device: torch.device, clock: Callable[[], float]
) -> list[float]:
    """Median seconds of each call; they take turns."""

    def seconds(call: Callable[[], Tensor]) -> float:
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    for call in calls:
        seconds(call)
    rounds = [[seconds(call) for call in calls] for _ in range(repetitions)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def table(results: list[Result]) -> str:
    """Results as Markdown."""
    lines = [
        "| size | device | precision | batch | GFLOP/image | naive images/s | ours images/s "
        "| ours/naive | ceiling images/s | ours/ceiling | codes equal "
        "| end to end images/s | end to end/ours | end to end/ceiling |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r.size} | {r.device} | {r.precision} | {r.batch_size} | {r.gflop_per_image:.3g} "
            f"| {r.naive_images_per_s:.4g} | {r.images_per_s:.4g} | {r.speedup:.2f} "
            f"| {r.ceiling_images_per_s:.4g} | {r.ceiling_fraction:.2f} | {r.codes_equal_fraction:.4f} "
            f"| {ratios(r)} |"
        )
    return "\n".join(lines)


def ratios(result: Result) -> str:
    """The engine against the encoder alone and the ceiling, three cells."""
    rate = result.end_to_end_images_per_s
    if rate is None:
        return "- | - | -"
    return f"{rate:.4g} | {rate / result.images_per_s:.2f} | {rate / result.ceiling_images_per_s:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["sample", "tiny", "mid"])
    parser.add_argument("--full", action="store_true", help="the released size as well (about 12 GiB)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--batch-size", type=int, default=EncoderConfig.batch_size)
    parser.add_argument("--compiled", action="store_true", help="ours by torch.compile")
    parser.add_argument("--end-to-end", type=int, default=0, metavar="N", help="pictures for the engine")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds, not wall time: one thread, busy machine"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.cpu_time and (options.device != "cpu" or options.threads != 1):
        parser.error("--cpu-time needs --device cpu --threads 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [measure(size, options) for size in options.sizes + ["full"] * options.full]
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
