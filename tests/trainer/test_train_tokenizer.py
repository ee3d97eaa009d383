"""Both stages and the pixel decoder, a few steps each, from real shards to a tokenizer that loads and
draws."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline.inputs import expand_inputs
from pipeline.training_pairs import PairBatches, TrainingPair, is_held_out, read_training_pairs
from tests.trainer.runs import run_in_processes
from tokenizer.augment import AugmentConfig
from tokenizer.caption_tokenizer import load_caption_tokenizer
from tokenizer.checkpoint import load_model, load_tokenizer
from tokenizer.code_usage import kmeans, reseed_dead
from tokenizer.codebook import Codebook
from tokenizer.codebook_stage import CodebookConfig, CodebookModel, Quantized
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel
from tokenizer.detokenizer import load_detokenizer
from tokenizer.from_scratch import init_from_scratch
from tokenizer.preprocess import PreprocessConfig
from tokenizer.seed import SeedModel
from trainer.codebook_run import CodebookCareConfig
from trainer.contrastive_run import WEIGHTS_NAME, ThumbnailConfig, load_contrastive, save_contrastive
from trainer.stage_config import StageRunConfig
from trainer.stage_data import HeldOut, held_out_of
from trainer.train_tokenizer import StagesConfig, run_stage

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "pairs"
RUN = StageRunConfig(
    steps=3,
    batch_size=4,
    lr=1e-3,
    warmup_steps=1,
    log_every=1,
    checkpoint_every=2,
    evaluate_every=3,
    max_grad_norm=1.0,
)
MODEL = SeedTokenizerConfig(
    patch_size=56, vit_width=16, vit_depth=1, vit_heads=2, vit_mlp_hidden=16, bert_hidden=16, bert_layers=2,
    bert_heads=2, bert_intermediate=16, bert_max_position=32, decode_depth=1, block_heads=2, n_embed=64,
    image_features_dim=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> list[TrainingPair]:
    return list(read_training_pairs(expand_inputs([str(SAMPLES / "*.tar")]), PreprocessConfig(color="clean")))


def stages(output: Path, **changes: object) -> StagesConfig:
    config = StagesConfig(
        output=output, device="cpu", model=MODEL, captions="words:400", augment=AugmentConfig(),
        contrastive=ContrastiveConfig(embed_dim=8, train_vit=True), contrastive_run=RUN,
        care=CodebookCareConfig(kmeans_vectors=200, reseed_every=1, cached_views=1, stores_fp16=True),
        codebook_run=RUN, pixels_run=RUN,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def test_all_stages_end_in_a_tokenizer_that_encodes_and_draws(
    pairs: list[TrainingPair], tmp_path: Path
) -> None:
    batches = PairBatches(pairs, RUN.batch_size, seed=0)
    held_out = HeldOut(np.stack([pair.image for pair in pairs[:6]]), [pair.caption for pair in pairs[:6]])
    captions = [pair.caption for pair in pairs]
    figures = {
        stage: run_stage(stages(tmp_path, stage=stage), batches, held_out, captions)
        for stage in ("qformer", "codebook", "pixels")
    }
    assert 0 <= figures["qformer"]["R@mean"] <= 100
    assert figures["codebook"]["codes used"] > 1
    assert figures["pixels"]["psnr"] > 0
    tokenizer = load_tokenizer(tmp_path / "codebook")
    assert not tokenizer.config.legacy
    codes = tokenizer.encode(held_out.images)
    assert codes.shape == (6, 32)
    stage1, _ = load_contrastive(tmp_path / "qformer")
    model, _ = load_model(tmp_path / "codebook")
    for name, parameter in stage1.qformer.named_parameters():  # stage 2 left the encoder alone
        assert torch.equal(model.qformer.get_parameter(name), parameter.half().float())
    decoder = tmp_path / "pixels" / "pixel_decoder.safetensors"
    decoder.rename(tmp_path / "codebook" / decoder.name)
    shutil.rmtree(tmp_path / "pixels")
    torch.manual_seed(1)  # the decoder is drawn from the seed of its run
    run_stage(stages(tmp_path, stage="pixels"), batches, held_out, captions)
    assert decoder.read_bytes() == (tmp_path / "codebook" / decoder.name).read_bytes()
    assert load_detokenizer(str(tmp_path / "codebook")).draw(codes).shape == (6, 64, 64, 3)
    lines = [json.loads(line) for line in (tmp_path / "codebook" / "metrics.jsonl").read_text().splitlines()]
    assert {"codes_used", "perplexity", "codes_dead"} <= set().union(*lines)


@pytest.mark.parametrize(
    ("loss", "thumbnail", "care"),
    [
        ({"query": "max"}, 0.0, {}),
        ({"all_queries": 0.3}, 5.0, {"cached_views": 1, "whole_targets": True}),
    ],
    ids=["views of their own", "thumbnails, cached views"],
)
def test_resumed_stages_equal_uninterrupted_ones(
    loss: dict[str, Any],
    thumbnail: float,
    care: dict[str, Any],
    pairs: list[TrainingPair],
    tmp_path: Path,
) -> None:
    """To the last bit, with dropout, k-means and re-seeding."""
    batches, held_out = PairBatches(pairs, RUN.batch_size, seed=0), held_out_of(pairs[:4])
    long = dataclasses.replace(
        RUN, steps=5, evaluate_every=0, warmup_steps=0, min_lr=RUN.lr
    )  # a rate for all
    contrastive = ContrastiveConfig(embed_dim=8, train_vit=True, **loss)
    care_config = CodebookCareConfig(kmeans_vectors=200, reseed_every=2, **care)
    codebook = CodebookConfig(dropout=0.1, encoder_dropout=not care)

    def run(output: Path, steps: tuple[int, ...]) -> None:
        for stage in ("qformer", "codebook"):
            for last in steps:
                part = dataclasses.replace(long, steps=last)
                run_stage(
                    stages(output, stage=stage, contrastive=contrastive, contrastive_run=part,
                           thumbnail=ThumbnailConfig(weight=thumbnail, window=4, stride=1),
                           codebook=codebook, codebook_run=part, care=care_config),
                    batches, held_out, [pair.caption for pair in pairs],
                )  # fmt: skip

    run(tmp_path / "whole", (5,))
    run(tmp_path / "parts", (2, 5))
    for file in ("qformer/stage1.safetensors", "codebook/model.safetensors"):
        whole, parts = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, parts[name]), (file, name)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (
            "qformer",
            {"augment": AugmentConfig(mirror=0.1)},
            r"augment\.mirror was 0.5, this run has 0.1",
        ),
        ("codebook", {"codebook": CodebookConfig(beta=0.5)}, r"codebook\.beta was 0.25, this run has 0.5"),
        ("pixels", {"augment": AugmentConfig(mirror=0.1)}, r"augment\.mirror was 0.5, this run has 0.1"),
    ],
)
def test_a_stage_does_not_go_on_with_other_settings(
    stage: Any, change: dict[str, Any], message: str, pairs: list[TrainingPair], tmp_path: Path
) -> None:
    config, run = stages(tmp_path, care=CodebookCareConfig()), dataclasses.replace(RUN, steps=1)
    arguments = PairBatches(pairs, 4, seed=0), held_out_of(pairs[:4]), [pair.caption for pair in pairs]
    for name in ("qformer", "codebook", "pixels"):
        config = dataclasses.replace(
            config, stage=name, contrastive_run=run, codebook_run=run, pixels_run=run
        )
        run_stage(config, *arguments)
        if name == stage:
            break
    with pytest.raises(ValueError, match=message):
        run_stage(dataclasses.replace(config, **change), *arguments)


def test_a_stage_does_not_go_on_upon_another_one_than_it_began_with(
    pairs: list[TrainingPair], tmp_path: Path
) -> None:
    """What stands below is frozen and in no checkpoint: codebook and decoders would be those of another
    encoder."""
    run = dataclasses.replace(RUN, steps=1)
    arguments = PairBatches(pairs, 4, seed=0), held_out_of(pairs[:4]), [pair.caption for pair in pairs]
    config = stages(tmp_path, contrastive_run=run, codebook_run=run, pixels_run=run)
    names = ("qformer", "codebook", "pixels")
    for name in (*names, *names):  # finished stages may run again
        run_stage(dataclasses.replace(config, stage=name), *arguments)
    for below, above, what in (("qformer", "codebook", "stage1_sha256"), ("codebook", "pixels", "tokenizer")):
        shutil.rmtree(tmp_path / below)
        new = dataclasses.replace(run, seed=7)
        run_stage(dataclasses.replace(config, stage=below, contrastive_run=new, codebook_run=new), *arguments)
        with pytest.raises(ValueError, match=f"step-00000001: {what} was .*, this run has ") as raised:
            run_stage(dataclasses.replace(config, stage=above), *arguments)
        assert f"delete {tmp_path / above} to begin anew" in str(raised.value)
        shutil.rmtree(tmp_path / above)
        run_stage(dataclasses.replace(config, stage=above), *arguments)


def write_clip(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    tiny = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224,
        patch_size=56, projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(tiny).save_pretrained(folder / "image_encoder")


def test_stage_2_does_not_go_on_with_another_clip(pairs: list[TrainingPair], tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=1)
    arguments = PairBatches(pairs, 4, seed=0), held_out_of(pairs[:4]), [pair.caption for pair in pairs]
    config = stages(
        tmp_path, contrastive_run=run, codebook_run=run, generation_target=f"{tmp_path}:image_encoder"
    )
    run_stage(config, *arguments)
    config = dataclasses.replace(config, stage="codebook")
    for _ in range(2):
        write_clip(tmp_path, seed=0)
        run_stage(config, *arguments)
    write_clip(tmp_path, seed=1)
    with pytest.raises(ValueError, match="step-00000001: generation_target_sha256 was "):
        run_stage(config, *arguments)


def stage_1_with_thumbnails(output: str) -> list[float]:
    """Gradient norms of three steps of eight pairs over all ranks; without dropout, which each rank draws."""
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    pairs = list(
        read_training_pairs(expand_inputs([str(SAMPLES / "*.tar")]), PreprocessConfig(color="clean"))
    )
    run = dataclasses.replace(RUN, batch_size=8 // num_ranks, evaluate_every=0)
    config = stages(
        Path(output),
        contrastive=ContrastiveConfig(embed_dim=8, train_vit=True, dropout=0.0), contrastive_run=run,
        thumbnail=ThumbnailConfig(weight=5.0, window=4, stride=1),
    )  # fmt: skip
    batches = PairBatches(pairs, run.batch_size, 0, rank, num_ranks)
    run_stage(config, batches, held_out_of(pairs[:4]), [pair.caption for pair in pairs])
    lines = (Path(output) / "qformer" / "metrics.jsonl").read_text().splitlines()
    return [norm for line in lines if (norm := json.loads(line).get("grad_norm"))]


def test_stage_1_on_two_gloo_ranks_equals_one(tmp_path: Path) -> None:
    """Views are drawn and thumbnails fitted over the pictures of both; texts of both are negatives."""
    alone = stage_1_with_thumbnails(str(tmp_path / "one"))
    together, _ = run_in_processes(stage_1_with_thumbnails, 2, str(tmp_path / "two"))
    assert len(alone) == 3
    assert together == pytest.approx(alone, rel=1e-3)
    one, two = (load_file(tmp_path / name / "qformer" / "stage1.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():  # Adam makes whole steps of gradients that are nothing but rounding
        assert (tensor - two[name]).abs().mean() < 0.05 * RUN.lr, name


def stage_2_counts(folder: str, stage1: str) -> dict[str, Any]:
    """Counts by which stage 2 re-seeds at its fourth step, in one run and in one that was cut after three."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    pairs = list(
        read_training_pairs(expand_inputs([str(SAMPLES / "*.tar")]), PreprocessConfig(color="clean"))
    )
    run = dataclasses.replace(RUN, batch_size=2, steps=4, evaluate_every=0, warmup_steps=0, min_lr=RUN.lr)
    care = CodebookCareConfig(kmeans_vectors=200, reseed_every=4, reseed_until=1.0)
    batches = PairBatches(pairs, run.batch_size, 0, rank, num_ranks)
    moved: dict[str, list[int]] = {}
    for name, parts in (("whole", (4,)), ("cut", (3, 4))):
        output = Path(folder) / name
        if rank == 0:
            shutil.copytree(stage1, output / "qformer")
        dist.barrier()
        seen = moved.setdefault(name, [])

        def watched(codebook: Codebook, counts: torch.Tensor, *rest: Any, seen: list[int] = seen) -> Any:
            seen.extend(counts.tolist())
            return reseed_dead(codebook, counts, *rest)

        def started(vectors: torch.Tensor, *rest: Any) -> torch.Tensor:
            moved.setdefault("vectors", []).append(len(vectors))
            return kmeans(vectors, *rest)

        with (
            patch("trainer.codebook_run.reseed_dead", watched),
            patch("trainer.codebook_run.kmeans", started),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", FutureWarning)
            for steps in parts:
                part = dataclasses.replace(run, steps=steps)
                config = stages(output, stage="codebook", codebook_run=part, care=care)
                run_stage(config, batches, held_out_of(pairs[:4]) if rank == 0 else None, [])
    return moved


def test_stage_2_on_two_ranks_resumes_with_the_counts_of_both(
    pairs: list[TrainingPair], tmp_path: Path
) -> None:
    config = stages(tmp_path / "first", contrastive_run=dataclasses.replace(RUN, steps=1))
    captions = [pair.caption for pair in pairs]
    run_stage(config, PairBatches(pairs, 4, seed=0), held_out_of(pairs[:4]), captions)
    first, second = run_in_processes(stage_2_counts, 2, str(tmp_path), str(tmp_path / "first" / "qformer"))
    assert first["vectors"] == [2 * 2 * 2 * 32] * 2  # two steps of both ranks, in each of the runs
    assert "vectors" not in second
    assert sum(first["whole"]) == 4 * 2 * 2 * 32  # steps, ranks, pairs, codes
    assert first["whole"] == first["cut"] == second["whole"] == second["cut"]
    whole, cut = (load_file(tmp_path / name / "codebook" / "model.safetensors") for name in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"window": 0}, {"stride": 0}])
def test_thumbnails_that_cannot_be_told_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"thumbnail.{next(iter(settings))}"):
        ThumbnailConfig(**settings)


def test_weights_with_a_row_more_than_the_caption_tokenizer_are_a_start(
    pairs: list[TrainingPair], tmp_path: Path
) -> None:
    """BLIP-2's table has 30,523 rows, [DEC] the last; BERT's vocabulary file 30,522 lines."""
    characters = "abcdefghijklmnopqrstuvwxyz"
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(lines) + "\n")
    given = ContrastiveModel(MODEL, ContrastiveConfig(vocab_size=len(lines) + 1, embed_dim=8))
    init_from_scratch(given, torch.Generator().manual_seed(0))
    save_contrastive(given, load_caption_tokenizer(str(vocabulary)), tmp_path / "blip2")
    config = stages(
        tmp_path, captions=str(vocabulary), initial_weights=(tmp_path / "blip2" / WEIGHTS_NAME,),
        contrastive_run=dataclasses.replace(RUN, steps=1),
    )  # fmt: skip

    def run(num_rows: int) -> None:
        contrastive = ContrastiveConfig(embed_dim=8, vocab_size=num_rows)
        batches = PairBatches(pairs, 4, seed=0)
        run_stage(dataclasses.replace(config, contrastive=contrastive), batches, held_out_of(pairs[:4]), [])

    run(len(lines) + 1)
    stage1, captions = load_contrastive(tmp_path / "qformer")
    rows = stage1.text_branch.word_embeddings.weight
    assert len(rows) == captions.vocab_size + 1 == len(lines) + 1
    assert torch.equal(stage1.vit.state_dict()["cls_token"], given.vit.state_dict()["cls_token"])
    assert torch.equal(rows[-1], given.text_branch.word_embeddings.weight[-1])
    other = given.eval().requires_grad_(False)
    other.vit.state_dict()["cls_token"].add_(1)
    save_contrastive(other, captions, tmp_path / "blip2")
    with pytest.raises(ValueError, match="initial_weights_sha256 was "):
        run(len(lines) + 1)
    with pytest.raises(
        ValueError, match=rf"contrastive.vocab_size {len(lines) - 1}: .* {len(lines)} entries"
    ):
        run(len(lines) - 1)


def test_bf16_reaches_frozen_networks_and_neither_features_nor_codes(
    pairs: list[TrainingPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, torch.dtype]] = set()

    def watch(module: nn.Module, kind: str) -> None:
        module.register_forward_hook(lambda _module, _inputs, out: seen.add((kind, out.dtype)))

    class WatchedModel(SeedModel):
        def __init__(self, config: SeedTokenizerConfig) -> None:
            super().__init__(config)
            watch(self.vit.blocks[0].attn.qkv, "vit")  # type: ignore[union-attr, arg-type]
            watch(self.encode_task_layer[0], "trained")

    def quantize(self: CodebookModel, features: torch.Tensor, target: torch.Tensor) -> Quantized:
        seen.update({("features", features.dtype), ("target", target.dtype)})
        return original(self, features, target)

    def scores(self: Codebook, z: torch.Tensor) -> torch.Tensor:
        made = original_scores(self, z)
        seen.add(("scores", made.dtype))
        return made

    original, original_scores = CodebookModel.quantize, Codebook._scores
    batches, held_out = PairBatches(pairs, 4, seed=0), held_out_of(pairs[:4])
    run = dataclasses.replace(RUN, steps=1)
    config = stages(tmp_path, contrastive_run=run, codebook_run=run, care=CodebookCareConfig())
    run_stage(config, batches, held_out, [pair.caption for pair in pairs])
    for module in ("trainer.codebook_run", "tokenizer.checkpoint"):
        monkeypatch.setattr(f"{module}.SeedModel", WatchedModel)
    monkeypatch.setattr(CodebookModel, "quantize", quantize)
    monkeypatch.setattr(Codebook, "_scores", scores)
    # Evaluation computes in fp32 and is left out.
    for module in ("trainer.codebook_run.code_figures", "trainer.pixels_run.pixel_figures"):
        monkeypatch.setattr(module, lambda *_: {})
    half = dataclasses.replace(run, precision="bf16")
    for stage in ("codebook", "pixels"):
        seen.clear()
        run_stage(
            dataclasses.replace(config, stage=stage, codebook_run=half, pixels_run=half),
            batches,
            held_out,
            [],
        )
        assert ("vit", torch.bfloat16) in seen, stage
        kept = {("scores", torch.float32)}
        if stage == "codebook":
            kept |= {("features", torch.float32), ("target", torch.float32)}
        assert seen == {("vit", torch.bfloat16), ("trained", torch.bfloat16), *kept}


def test_stage_2_needs_stage_1(pairs: list[TrainingPair], tmp_path: Path) -> None:
    batches = PairBatches(pairs, 4, seed=0)
    held_out = HeldOut(pairs[0].image[None], [pairs[0].caption])
    with pytest.raises(FileNotFoundError, match="run stage qformer first"):
        run_stage(stages(tmp_path, stage="codebook"), batches, held_out, [])


def test_batches_are_a_function_of_seed_and_step_and_ranks_share_them(pairs: list[TrainingPair]) -> None:
    whole = PairBatches(pairs, 8, seed=3)
    ranks = [PairBatches(pairs, 4, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    for step in (0, whole.steps_per_epoch - 1, whole.steps_per_epoch + 1):
        parts = [rank.batch(step).captions for rank in ranks]
        assert (
            parts[0] + parts[1]
            == whole.batch(step).captions
            == PairBatches(pairs, 8, seed=3).batch(step).captions
        )
    epoch = [caption for step in range(whole.steps_per_epoch) for caption in whole.batch(step).captions]
    assert len(epoch) == len(set(epoch)) == whole.steps_per_epoch * 8
    assert whole.batch(0).captions != PairBatches(pairs, 8, seed=4).batch(0).captions


def test_an_epoch_has_one_pair_of_each_group(pairs: list[TrainingPair]) -> None:
    grouped = [dataclasses.replace(pair, group=str(index // 3)) for index, pair in enumerate(pairs)]
    batches = PairBatches(grouped, 2, seed=0)
    assert batches.steps_per_epoch == (len(pairs) + 2) // 3 // 2
    group_of = {pair.caption: pair.group for pair in grouped}
    groups = [
        group_of[caption]
        for step in range(batches.steps_per_epoch)
        for caption in batches.batch(step).captions
    ]
    assert len(groups) == len(set(groups))
    with pytest.raises(ValueError, match="fewer than one batch"):
        PairBatches(pairs, len(pairs) + 1, seed=0)


def test_held_out_groups_are_a_stable_share() -> None:
    names = [f"group {index}" for index in range(5000)]
    chosen = [name for name in names if is_held_out(name, 0.1)]
    assert 400 < len(chosen) < 600
    assert set(chosen) < {name for name in names if is_held_out(name, 0.3)}
    assert not any(is_held_out(name, 0.0) for name in names)


def codebook_model() -> CodebookModel:
    model = SeedModel(MODEL)
    init_from_scratch(model, torch.Generator().manual_seed(0))
    return CodebookModel(model, CodebookConfig(dropout=0.0)).train()


def codebook_batch(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 224, 224, 3), generator=rng, dtype=torch.uint8)
    return images[part], torch.randn(6, MODEL.image_features_dim, generator=rng)[part]


def two_ranks(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    model = codebook_model()
    parallel = DistributedDataParallel(model)
    parallel(*codebook_batch(slice(3 * rank, 3 * rank + 3))).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save(gradients, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


def test_stage_2_on_two_gloo_ranks_equals_one(tmp_path: Path) -> None:
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    one = codebook_model()
    one(*codebook_batch(slice(None))).loss.backward()
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, parameter in one.named_parameters():
            assert (parameter.grad is None) == (name not in gradients), name
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
