"""The training benchmark measures both stages and the loss."""

from pathlib import Path

import pytest

from benchmarks.tokenizer_training import Benchmark, measure

SMALL = """
output: unused
data: {input: [nothing.tar]}
model: {patch_size: 112, vit_width: 16, vit_depth: 1, vit_heads: 2, vit_mlp_hidden: 16, bert_hidden: 16,
  bert_layers: 2, bert_heads: 2, bert_intermediate: 16, bert_max_position: 32, decode_depth: 1,
  block_heads: 2, image_features_dim: 12, n_embed: 64}
contrastive: {embed_dim: 8, train_vit: true}
"""


@pytest.mark.parametrize("kind", ["qformer", "codebook", "loss"])
def test_a_size_is_measured(kind: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    result = measure(kind, 4, Benchmark(recipe=tmp_path / "small.yaml", steps=1))
    assert result["what"] == kind
    assert result["pairs_s"] == pytest.approx(4 / float(result["step_s"]))
    assert float(result["MiB"]) >= 0
