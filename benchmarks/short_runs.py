"""Every benchmark in a form that takes seconds to a minute, and which of its figures belong in the table.

A benchmark is a module with a command line that leaves its figures in a JSON file, as JSON lines, or as text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.table import Row

Figures = Any
"""What the benchmark left: the content of its JSON file, a list of its JSON lines, or what it printed."""


@dataclass(frozen=True)
class ShortRun:
    """How a benchmark is run when all are."""

    rows: Callable[[Figures], list[Row]]
    module: str = ""
    """Of ``benchmarks``; empty: as the run is called."""
    flags: Sequence[str] = ()
    gpu_flags: Sequence[str] | None = None
    """Flags where there is a GPU; None: the same."""
    needs_gpu: bool = False
    output: Literal["file", "lines", "text"] = "file"
    """Where figures are: a file that ``--json`` names, JSON lines that are printed, or printed text."""
    timeout_s: float = 180.0
    environment: Sequence[tuple[str, str]] = ()


def encoder(results: Figures) -> list[Row]:
    rows = []
    for r in results:
        is_cpu, is_full = "CPU" in r["device"], r["size"] == "full"
        name = f"{r['size']} size ({r['gflop_per_image']:.3g} GFLOP an image), {r['precision']}"
        rows.append(
            Row(
                what=f"{name}, batch {r['batch_size']}", ours=r["images_per_s"], unit="images/s",
                baseline=r["naive_images_per_s"], baseline_name="naive eager",
                limit=r["ceiling_images_per_s"], limit_name="matrix products",
                least_ratio=1.2 if is_cpu else 2.5, least_share=0.66 if is_full and not is_cpu else None,
            )
        )  # fmt: skip
        if end_to_end := r.get("end_to_end_images_per_s"):
            rows.append(
                Row(
                    what=f"{name}, tars of JPEGs to token shards", ours=end_to_end, unit="images/s",
                    limit=r["images_per_s"], limit_name="encoder alone", least_share=0.95,
                )
            )  # fmt: skip
    worst = min(results, key=lambda r: r["codes_equal_fraction"])
    rows.append(
        Row(
            what=f"codes equal to the naive version's, worst size ({worst['size']})",
            ours=worst["codes_equal_fraction"], unit="", limit=1.0, limit_name="all",
        )
    )  # fmt: skip
    return rows


def code_agreement(results: Figures) -> list[Row]:
    rows = [
        Row(what=f"codes of {r['pictures']} real pictures equal to fp32's, {r['tokenizer']}, {r['variant']}",
            ours=r["equal_fraction"], unit="", limit=1.0, limit_name="all")
        for r in results[1:]
    ]  # fmt: skip
    moved = sum(r["moved"] for r in results)
    return [*rows, Row(what="codes that change with the company in a batch", ours=moved, unit="", most=0)]


def decode(results: Figures) -> list[Row]:
    rows = []
    for name in ("web pictures", "12 megapixels"):
        ours, pillow = results[name]["ours"], results[name]["Pillow"]
        rows.append(
            Row(what=f"{name}, decoded and squashed", ours=ours["images_per_s"], unit="images/s a core",
                baseline=pillow["images_per_s"], baseline_name="Pillow")
        )  # fmt: skip
    rows += [
        Row(what=f"decode pool over a plain loop, {name}", ours=ratio, unit="", limit=1.0, limit_name="loop")
        for name, ratio in results["pool"].items()
    ]
    return rows


def tar_reader(results: Figures) -> list[Row]:
    return [
        Row(what=f"tar of {name}", ours=rates["ours"], unit="samples/s",
            baseline=rates["webdataset"], baseline_name="webdataset")
        for name, rates in results.items()
    ]  # fmt: skip


def tokenization(results: Figures) -> list[Row]:
    return [
        Row(
            what=f"{r['tokenizer']} tokenizer, decode workers {r['workers']}, shards {r['shards']}",
            ours=r["images_per_s"], unit="images/s", limit=r["bound_images_per_s"],
            limit_name="decoding or model alone", least_share=0.95,
        )
        for r in results
    ]  # fmt: skip


def document_limits(results: Figures) -> list[Row]:
    return [
        Row(what=f"interleaved documents, {r['tokenizer']} tokenizer, {r['workers']} decoding",
            ours=r["images_per_s"], unit="images/s", limit=r["limit_images_per_s"],
            limit_name="decoding or model alone")
        for r in results
    ] + [
        Row(what=f"the same in processor time, {r['tokenizer']} tokenizer", ours=r["processor"], unit="",
            limit=1.0, limit_name="decoding and model alone")
        for r in results
    ]  # fmt: skip


def documents(results: Figures) -> list[Row]:
    """Storage alone: the engine's cost is `tokenization`'s, and needs longer runs here."""
    return [
        Row(what=f"token shards over images and texts, {results['documents']} pages", less_is_better=True,
            ours=100 * results["storage_fraction"], unit="%", baseline=6.0, most=6,
            baseline_name="paper, OBELISC"),
    ]  # fmt: skip


def codes_encoding(results: Figures) -> list[Row]:
    return [
        Row(what=f"bytes an image, {r['codes']} codes, {r['layout']}", ours=r["bytes_per_image"], unit="B",
            limit=52.0 if r["codes"] == "uniform" else None, limit_name="entropy",
            less_is_better=True, baseline=plain["bytes_per_image"], baseline_name="plain list", most=53)
        for r in results
        for plain in results
        if r["layout"] == "list, split, zstd 3" and plain["layout"] == "list, plain, none"
        and plain["codes"] == r["codes"]
    ]  # fmt: skip


def packing(results: Figures) -> list[Row]:
    rows = [
        Row(what=f"padding at 2,048 ids, lengths of {r['lengths']}, windows of {r['num_documents']:,}",
            ours=100 * r["packed_padding"], unit="%", baseline=100 * r["best_fit_padding"],
            baseline_name="best fit alone", less_is_better=True)
        for r in results["packing"]
    ]  # fmt: skip
    return rows + [
        Row(what=f"whole build of {r['kind']}, images included", ours=r["build_ids_s"], unit="ids/s a core",
            baseline=r["text_ids_s"], baseline_name="tokenizers alone")
        for r in results["build"]
    ]  # fmt: skip


def packing_memory(results: Figures) -> list[Row]:
    return [
        Row(what=f"memory above imports, {r['documents']:,} documents", ours=r["over_import_mb"], unit="MB")
        for r in results
    ]


def packed_reading(results: Figures) -> list[Row]:
    ours, theirs = results["ours, ids only"], results["datasets, same files"]
    mapped = results["megatron .bin, memory-mapped"]
    return [
        Row(what=f"packed rows to int64 tensors, {order}", ours=ours[order], unit="M ids/s",
            baseline=theirs[order], baseline_name="datasets", limit=mapped[order],
            limit_name="memory-mapped .bin")
        for order in ("in order", "at random")
    ]  # fmt: skip


def scale(results: Figures) -> list[Row]:
    return [
        Row(what=f"driver, {r['shards']:,} shards, {r['workers']} workers",
            ours=r["driver_cpu_us_per_shard"], unit="us of processor time a shard")
        for r in results
    ]  # fmt: skip


def video_frames(results: Figures) -> list[Row]:
    return [
        Row(what="four frames of each sample clip", ours=results["four_ms"], unit="ms", less_is_better=True,
            baseline=results["all_ms"], baseline_name="decoding all frames")
    ]  # fmt: skip


def kills(text: Figures) -> list[Row]:
    counts = re.search(r"(\d+) kills, (\d+) (?:run|build)s ended, (\d+) differ from the undisturbed", text)
    if counts is None:
        raise ValueError("kills: its last lines do not say how many runs differ")
    if counts[2] == "0":
        raise ValueError("kills: no run came to its end, so nothing was compared")
    what = f"results that differ after {counts[1]} kills, {counts[2]} compared byte for byte"
    return [Row(what=what, ours=int(counts[3]), unit="", most=0)]


def tokenizer_training(results: Figures) -> list[Row]:
    return [
        Row(what=f"stage {r['what']}, {r['pairs']} pairs a step, {r['MiB']:,.0f} MiB at the peak",
            ours=r["pairs_s"], unit="pairs/s")
        for r in results
    ]  # fmt: skip


def trainer_cpu(results: Figures) -> list[Row]:
    rows = []
    for r in results:
        (_, ours), *others = r["ids_per_s"].items()
        rows += [
            Row(what=f"training, {r['contest']}", ours=ours, unit="ids/s a core", baseline=rate,
                baseline_name=name)
            for name, rate in others
        ]  # fmt: skip
    return rows


def trainer_loss_memory(results: Figures) -> list[Row]:
    plain, *ours = results
    return [
        Row(what=f"peak memory of the loss, {r['loss']}", ours=r["peak_mib"], unit="MiB", less_is_better=True,
            baseline=plain["peak_mib"], baseline_name="all logits at once")
        for r in ours
    ]  # fmt: skip


def trainer_gpu(results: Figures) -> list[Row]:
    return [
        Row(what=f"training {r['preset']}, {'compiled' if r['compiled'] else 'eager'}", unit="ids/s",
            ours=r["ids_per_s"], limit=r["ids_per_s"] / r["mfu"] if r.get("mfu") else None,
            limit_name="peak of the device")
        for r in results
    ]  # fmt: skip


FULL_ON_GPU = ("--sizes", "full", "--precision", "bf16", "--batch-size", "64")
ONE_THREAD = (("OMP_NUM_THREADS", "1"),)
SHORT_RUNS: dict[str, ShortRun] = {
    "encoder": ShortRun(
        encoder,
        flags=("--repetitions", "3"),
        gpu_flags=FULL_ON_GPU,
    ),
    "encoder_compiled": ShortRun(
        encoder,
        module="encoder",
        flags=(*FULL_ON_GPU, "--compiled", "--end-to-end", "20000"),
        needs_gpu=True,
        timeout_s=600,
    ),
    "code_agreement": ShortRun(
        code_agreement,
        flags=("--limit", "24"),
        gpu_flags=("--precisions", "fp32", "bf16", "fp16", "--compiled"),
    ),
    "decode": ShortRun(decode, flags=("--limit", "24", "--repeats", "3", "--rounds", "3")),
    "tar_reader": ShortRun(tar_reader, flags=("--seconds", "0.7")),
    "video_frames": ShortRun(video_frames),
    "codes_encoding": ShortRun(codes_encoding, flags=("--images", "65536", "--repeats", "1")),
    "tokenization": ShortRun(
        tokenization, flags=("--images", "300", "--workers", "1", "--shards", "1", "6", "--repeats", "3")
    ),
    "document_limits": ShortRun(document_limits, flags=("--copies", "2", "--rounds", "3")),
    "documents": ShortRun(documents, flags=("--copies", "2", "--rounds", "1", "--decode-workers", "1")),
    "scale": ShortRun(scale, flags=("--shards", "10000")),
    "kills": ShortRun(kills, flags=("--kills", "6", "--shards", "4", "--samples", "10"), output="text"),
    "packing_kills": ShortRun(kills, flags=("--kills", "3"), output="text"),
    "packing": ShortRun(packing, flags=("--documents", "10000")),
    "packing_memory": ShortRun(packing_memory, flags=("--documents", "10000", "100000")),
    "packed_reading": ShortRun(packed_reading, flags=("--sequences", "2048")),
    "tokenizer_training": ShortRun(
        tokenizer_training,
        flags=("--batches", "32", "--steps", "2"),
        gpu_flags=("--recipe", "recipes/tokenizer_seed2.yaml", "--batches", "64", "512"),
        output="lines",
        environment=ONE_THREAD,
    ),
    "trainer_cpu": ShortRun(
        trainer_cpu, flags=("--rounds", "3"), output="lines", environment=ONE_THREAD
    ),
    "trainer_loss_memory": ShortRun(trainer_loss_memory, output="lines"),
    "trainer_gpu": ShortRun(trainer_gpu, needs_gpu=True, output="lines", timeout_s=900),
}  # fmt: skip
