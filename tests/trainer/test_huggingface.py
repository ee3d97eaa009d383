"""Hugging Face folders: read and written with equal logits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from schemas.vocabulary import NUM_ADDED_IDS, VocabularyLayout
from tests.trainer.tiny import CONFIG, LAYOUT, bounds, positions, tiny_model
from trainer.huggingface import HuggingFaceWeights, export_model, exported_layout, read_config
from trainer.llama import Llama, LlamaConfig, RopeScaling
from trainer.presets import PRESETS
from trainer.weights import fill_parameters, grow_table

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "llama1": {"num_key_value_heads": 4},
    "grouped": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 2},
    "wide_heads": {"head_dim": 32},
}


def their_model(folder: Path, **fields: object) -> transformers.LlamaForCausalLM:
    """A random model of theirs, saved to ``folder`` with a text vocabulary of 300."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        **fields,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def our_model(folder: Path, layout: VocabularyLayout = LAYOUT) -> Llama:
    config = replace(read_config(folder), vocab_size=layout.padded_size)
    model = Llama(config).eval()
    fill_parameters(model, HuggingFaceWeights(folder, layout, seed=0))
    return model


def ids(length: int = 100) -> torch.Tensor:
    return torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def our_logits(model: Llama, x: torch.Tensor) -> torch.Tensor:
    return model(x, positions([x.shape[1]]), bounds([x.shape[1]]))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_import_and_export_keep_the_logits(variant: str, tmp_path: Path) -> None:
    theirs = their_model(tmp_path / "in", **VARIANTS[variant])
    ours = our_model(tmp_path / "in")
    expected = theirs(ids()).logits
    torch.testing.assert_close(our_logits(ours, ids())[..., :300], expected, atol=1e-5, rtol=0)

    out = tmp_path / "out"
    export_model(out, ours.named_parameters(), ours.config, LAYOUT, torch.float32, max_shard_size="300KB")
    exported = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert exported.config.vocab_size == 300 + NUM_ADDED_IDS
    assert exported.get_input_embeddings().weight.shape[0] == LAYOUT.size < LAYOUT.padded_size
    theirs_again = exported(ids()).logits
    torch.testing.assert_close(theirs_again, our_logits(ours, ids())[..., : LAYOUT.size], atol=1e-5, rtol=0)
    assert exported_layout(out) == LAYOUT
    assert len(list(out.glob("*.safetensors"))) > 1

    again = our_model(out)
    assert again.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_pickled_checkpoints_are_read_without_running_them(tmp_path: Path) -> None:
    theirs = their_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        expected = theirs(ids()).logits
    torch.testing.assert_close(our_logits(our_model(tmp_path), ids())[..., :300], expected, atol=1e-5, rtol=0)


def test_another_tokenizers_vocabulary_is_refused(tmp_path: Path) -> None:
    their_model(tmp_path)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has 300 rows.*text tokenizer"):
        our_model(tmp_path, VocabularyLayout(base_size=301))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ValueError, match="model_type is 'mistral'"):
        read_config(tmp_path)


def test_new_rows_have_the_mean_and_spread_of_the_old_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(300, 64, generator=generator) * torch.linspace(0.01, 0.5, 64) + torch.linspace(
        -1, 1, 64
    )
    table = grow_table(old, LAYOUT, "embed_tokens.weight", seed=0)
    new = table[300 : LAYOUT.size]
    assert torch.equal(table[:300], old)
    assert (new.mean(0) - old.mean(0)).abs().max() < 0.05
    torch.testing.assert_close(new.std(0), old.std(0), rtol=0.05, atol=0)
    assert len(new.unique(dim=0)) == NUM_ADDED_IDS
    assert not table[LAYOUT.size :].any()
    assert torch.equal(table, grow_table(old, LAYOUT, "embed_tokens.weight", seed=0))
    assert not torch.equal(table, grow_table(old, LAYOUT, "lm_head.weight", seed=0))


@pytest.mark.parametrize(
    ("preset", "billions"), [("seed-llama-8b", 6.81), ("seed-llama-14b", 13.10), ("1b", 1.14)]
)
def test_presets_have_their_size(preset: str, billions: float) -> None:
    """Of 32,000 text ids and 8,194 added: the paper's 8B and 14B count the image tokenizer as well."""
    config = replace(PRESETS[preset], vocab_size=VocabularyLayout().size)
    with torch.device("meta"):
        model = Llama(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    assert config.num_projection_parameters == sum(matrix.numel() for matrix in matrices)
    assert counted / 1e9 == pytest.approx(billions, abs=0.03)


def test_config_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="num_kv_heads must divide"):
        LlamaConfig(num_heads=32, num_kv_heads=5)
    with pytest.raises(ValueError, match="'linear' or 'llama3'"):
        RopeScaling(kind="yarn")


def test_export_of_a_fresh_model_loads(tmp_path: Path) -> None:
    model = tiny_model().eval()
    export_model(tmp_path, model.named_parameters(), CONFIG, LAYOUT, torch.bfloat16)
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
