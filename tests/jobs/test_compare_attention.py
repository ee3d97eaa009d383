"""The comparison of causal with bilateral codes, from shards to the table, as small as can be."""

import json
from pathlib import Path

import pytest
import torch

from jobs.compare_attention import frequency_perplexity, main
from tokenizer.config import SeedTokenizerConfig
from trainer.llama import LlamaConfig
from trainer.presets import PRESETS

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "compare_causal_bilateral.yaml"
SMALL = {
    "tokenizer.data.held-out-fraction": 0.3,
    "tokenizer.model.patch-size": 56,
    "tokenizer.model.vit-width": 16,
    "tokenizer.model.vit-depth": 1,
    "tokenizer.model.vit-heads": 2,
    "tokenizer.model.vit-mlp-hidden": 16,
    "tokenizer.model.bert-hidden": 16,
    "tokenizer.model.bert-layers": 2,
    "tokenizer.model.bert-heads": 2,
    "tokenizer.model.bert-intermediate": 16,
    "tokenizer.model.block-heads": 2,
    "tokenizer.model.image-features-dim": 12,
    "tokenizer.model.n-embed": 64,
    "tokenizer.contrastive.embed-dim": 8,
    "tokenizer.contrastive-run.steps": 2,
    "tokenizer.contrastive-run.batch-size": 4,
    "tokenizer.codebook-run.steps": 2,
    "tokenizer.codebook-run.batch-size": 4,
    "tokenizer.care.kmeans-vectors": 200,
    "language.num-steps": 2,
    "language.data.global-batch": 1,
    "language.data.micro-batch": 1,
    "language.model.preset": "compare",
    "language.device": "cpu",
    "epochs": 1,
    "num-prompts": 3,
}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shape = LlamaConfig(
        width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=16, max_length=512
    )
    monkeypatch.setitem(PRESETS, "compare", shape)
    monkeypatch.chdir(REPOSITORY)
    shard = str(REPOSITORY / "samples" / "pairs" / "00000.tar")
    folder = ["--output", str(tmp_path / "out"), "--tokenizer.data.input", shard]
    return [
        "--config",
        str(RECIPE),
        *folder,
        *(word for k, v in SMALL.items() for word in (f"--{k}", str(v))),
    ]


def test_both_variants_are_trained_judged_and_tabled(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "comparison.json").read_text())["results"]
    assert list(results) == ["causal", "bilateral"]
    assert results["causal"].keys() == results["bilateral"].keys()
    for name, figures in results.items():
        config = SeedTokenizerConfig.from_json(tmp_path / "out" / name / "codebook" / "config.json")
        assert config.causal == (name == "causal")
        assert 1 < figures["code perplexity, by frequency alone"] <= config.n_embed
        assert figures["image perplexity given the caption"] > 1
        assert figures["caption perplexity given the codes"] > 1
        assert 0 <= figures["captions, CIDEr-D"] <= 1000
    assert results["causal"] != results["bilateral"]
    assert "| | causal | bilateral |" in capsys.readouterr().out
    assert main(arguments) == 0  # finished parts are not trained again, and judged the same
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["results"] == results


def test_streamed_pairs_are_refused(arguments: list[str]) -> None:
    streamed = ["--tokenizer.data.shuffle-pairs", "10", "--tokenizer.data.pairs-per-epoch", "10"]
    with pytest.raises(ValueError, match="holds its pairs in memory"):
        main([*arguments, *streamed])


def test_frequency_perplexity_of_uniform_codes_is_their_number() -> None:
    codes = torch.arange(64).view(2, 32)
    assert frequency_perplexity(codes, codes, 64) == pytest.approx(64)
    assert frequency_perplexity(torch.zeros(2, 32, dtype=torch.int64), codes * 0, 64) < 3
