"""Adapters: what is trained, and files that peft reads and writes."""

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.schemas.packed_rows import make_sequences, write_packed
from tests.trainer.runs import LAYOUT, SHAPE, losses_of, packed_folder, run_alone, run_config
from tests.trainer.tiny import bounds, positions
from trainer.checkpoint import complete_checkpoints
from trainer.export import export_checkpoint, load_checkpoint
from trainer.huggingface import export_model
from trainer.llama import Llama
from trainer.load_model import load_model
from trainer.lora import (
    PROJECTIONS,
    LoraConfig,
    adapter_weights,
    add_adapters,
    is_adapter,
    merge_adapters,
)
from trainer.parallelize import ParallelConfig
from trainer.run_config import ModelConfig, TrainConfig
from trainer.weights import fill_parameters, random_weights

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Six steps of adapters on a model in a Hugging Face folder, saved after three."""
    folder = tmp_path_factory.mktemp("lora")
    shape = replace(SHAPE, vocab_size=LAYOUT.padded_size)
    base = Llama(shape)
    fill_parameters(base, random_weights(shape, 3))
    export_model(folder / "base", base.named_parameters(), shape, LAYOUT, torch.float32)
    model = ModelConfig(init_from=str(folder / "base"))
    config = run_config(packed_folder(folder / "packed"), folder / "run", num_steps=6, lora=LORA, model=model)
    run_alone(config)
    export_checkpoint(newest(config), folder / "run" / "model", torch.float32)
    return config


def newest(config: TrainConfig) -> Path:
    return complete_checkpoints(Path(config.output) / "checkpoints")[-1]


def ids() -> torch.Tensor:
    return torch.randint(0, LAYOUT.size, (1, 50), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: Llama) -> torch.Tensor:
    return model.eval()(ids(), positions([50]), bounds([50]))[..., : LAYOUT.size]


def other_base(folder: Path, seed: int) -> str:
    """A model of the same shape in a folder."""
    shape = replace(SHAPE, vocab_size=LAYOUT.padded_size)
    model = Llama(shape)
    fill_parameters(model, random_weights(shape, seed))
    export_model(folder, model.named_parameters(), shape, LAYOUT, torch.float32, max_shard_size="300KB")
    return str(folder)


def test_another_frozen_base_is_refused(run: TrainConfig, tmp_path: Path) -> None:
    """On resume and when exported; the base may have moved and be divided into other files."""
    config = replace(run, output=str(tmp_path / "run"), num_steps=1)
    run_alone(config)
    moved = ModelConfig(init_from=other_base(tmp_path / "moved", 3))
    assert run_alone(replace(config, num_steps=2, model=moved)).first_step == 1

    for model in (ModelConfig(init_from=other_base(tmp_path / "other", 4)), ModelConfig(preset="test")):
        with pytest.raises(ValueError, match=r"of .*moved \(\w+\), model.init_from is now .*; resume on"):
            run_alone(replace(config, num_steps=3, model=model))

    other_base(tmp_path / "moved", 4)
    with pytest.raises(ValueError, match=r"belong to .*moved \(\w+\), where a model with other weights lies"):
        load_checkpoint(newest(config))


def test_projections_are_frozen_and_all_else_learns(run: TrainConfig) -> None:
    assert losses_of(run)[-1] < losses_of(run)[0] - 0.3
    trained, _, _ = load_checkpoint(newest(run))
    before, _ = load_model(Path(run.model.init_from))
    for name, value in before.named_parameters():
        is_projection = name.split(".")[-2] in PROJECTIONS
        assert torch.equal(trained.get_parameter(name), value) == is_projection, name
    assert all(bool(v.any()) for n, v in trained.named_parameters() if is_adapter(n))
    names = {name for name, value in trained.named_parameters() if not value.requires_grad}
    assert len(names) == SHAPE.num_layers * len(PROJECTIONS)


def test_bf16_is_close(run: TrainConfig, tmp_path: Path) -> None:
    """The precision of the recipes."""
    parallel = ParallelConfig(precision="bf16", activation_checkpointing="selective")
    config = replace(run, output=str(tmp_path), parallel=parallel)
    run_alone(config)
    assert losses_of(config) == pytest.approx(losses_of(run), abs=2e-2)


def test_frozen_weights_are_not_in_checkpoints(run: TrainConfig) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(newest(run)).read_metadata().state_dict_metadata
    assert not any(name.endswith("q_proj.weight") for name in stored)
    assert any(name.endswith("q_proj.lora_A") for name in stored)


def test_dropout_resumes_exactly(run: TrainConfig, tmp_path: Path) -> None:
    """Interrupted after every step, dropout draws the same masks."""
    from trainer.processes import process_group
    from trainer.stop_signal import StopSignal
    from trainer.train import Trainer

    config = replace(run, output=str(tmp_path))
    for _ in range(run.num_steps):
        stop = StopSignal()
        stop.is_set = True
        with process_group(torch.device("cpu")):
            Trainer(config, torch.device("cpu"), stop).run()
    assert losses_of(config) == losses_of(run)


@torch.no_grad()
def test_adapter_file_merge_and_export_give_equal_logits(run: TrainConfig, tmp_path: Path) -> None:
    folder = Path(run.output) / "model"
    adapted, _, _ = load_checkpoint(newest(run))
    expected = logits_of(adapted)

    theirs = transformers.LlamaForCausalLM.from_pretrained(run.model.init_from, dtype=torch.float32)
    with_adapter = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    torch.testing.assert_close(with_adapter(ids()).logits, expected, atol=1e-5, rtol=0)

    exported = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(exported(ids()).logits, expected, atol=1e-5, rtol=0)

    merge_adapters(adapted)
    torch.testing.assert_close(logits_of(adapted), expected, atol=1e-5, rtol=0)
    assert not any(is_adapter(name) for name, _ in adapted.named_parameters())
    for source in (newest(run), folder):
        torch.testing.assert_close(logits_of(load_model(source)[0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["text", "nothing"])
def test_peft_finds_the_base_that_the_adapter_names(init: str, run: TrainConfig, tmp_path: Path) -> None:
    """From a text model, whose vocabulary the run has grown, and from random weights."""
    model = ModelConfig(preset="test")
    if init == "text":
        text = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=LAYOUT.base_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            )
        )  # fmt: skip
        text.save_pretrained(tmp_path / "text")
        model = ModelConfig(init_from=str(tmp_path / "text"))
    config = replace(run, output=str(tmp_path / "run"), model=model, num_steps=2)
    run_alone(config)
    export_checkpoint(newest(config), tmp_path / "model", torch.float32)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "model" / "adapter", dtype=torch.float32
    )
    expected = logits_of(load_checkpoint(newest(config))[0])
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(ids()).logits, expected, atol=1e-5, rtol=0)


def test_training_goes_on_from_an_adapter_of_peft(run: TrainConfig, tmp_path: Path) -> None:
    """peft loads our adapter and saves it; a run that starts from its files begins with our loss."""
    theirs = transformers.LlamaForCausalLM.from_pretrained(run.model.init_from, dtype=torch.float32)
    adapter = peft.PeftModel.from_pretrained(theirs, Path(run.output) / "model" / "adapter")
    adapter.save_pretrained(tmp_path / "theirs")

    lora = replace(LORA, dropout=0.0)
    model = replace(run.model, adapter=str(tmp_path / "theirs"))
    on_adapter = replace(run, output=str(tmp_path / "a"), model=model, lora=lora, num_steps=1)
    merged = ModelConfig(init_from=str(Path(run.output) / "model"))
    on_merged = replace(on_adapter, output=str(tmp_path / "b"), model=merged)
    run_alone(on_adapter)
    run_alone(on_merged)
    assert losses_of(on_adapter) == pytest.approx(losses_of(on_merged), abs=1e-5)


def test_an_adapter_of_another_scale_is_refused(run: TrainConfig, tmp_path: Path) -> None:
    model = replace(run.model, adapter=str(Path(run.output) / "model" / "adapter"))
    config = replace(run, output=str(tmp_path), model=model, lora=replace(LORA, alpha=16.0), num_steps=1)
    with pytest.raises(ValueError, match=r"lora_alpha 8\.0, the run has lora.rank 4 and lora\.alpha 16"):
        run_alone(config)


def test_an_adapter_of_another_codebook_is_refused(run: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed" / "packed-00000.parquet"
    write_packed(path, make_sequences(8, 0, LAYOUT), vocabulary=LAYOUT, codebooks={"coyo": "12" * 16})
    model = replace(run.model, adapter=str(Path(run.output) / "model" / "adapter"))
    data = replace(run.data, packed=str(tmp_path / "packed"))
    with pytest.raises(ValueError, match="adapter was trained on image codes of codebook efefefefefef"):
        run_alone(replace(run, output=str(tmp_path / "run"), model=model, data=data))


def test_full_fine_tuning_on_the_merged_model(run: TrainConfig, tmp_path: Path) -> None:
    model = ModelConfig(init_from=str(Path(run.output) / "model"))
    config = replace(run, output=str(tmp_path), model=model, lora=LoraConfig(rank=0), num_steps=2)
    run_alone(config)
    assert losses_of(config)[0] < losses_of(run)[0] - 0.3


def test_adapters_start_without_effect() -> None:
    shape = replace(SHAPE, vocab_size=LAYOUT.padded_size)
    plain, adapted = Llama(shape), Llama(shape)
    add_adapters(adapted, LORA)
    for model in (plain, adapted):
        fill_parameters(model, adapter_weights(random_weights(shape, 0), {}, 0))
    assert torch.equal(logits_of(plain), logits_of(adapted))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora does not run with parallel\.tensor"):
        TrainConfig(lora=LORA, parallel=ParallelConfig(tensor=2))
    with pytest.raises(ValueError, match=r"lora does not run with parallel\.is_fp8"):
        TrainConfig(lora=LORA, parallel=ParallelConfig(is_fp8=True))
    with pytest.raises(ValueError, match=r"model\.adapter needs lora\.rank"):
        TrainConfig(model=ModelConfig(adapter="somewhere"))
    with pytest.raises(ValueError, match=r"dropout be in \[0, 1\)"):
        LoraConfig(dropout=1.0)
