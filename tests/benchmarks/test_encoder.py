"""The yardstick of the encoder benchmark does the published arithmetic, and the benchmark runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.naive_encoder import NaiveEncoder
from tests.tokenizer.conftest import read_golden
from tokenizer.checkpoint import official_tensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["tiny", "tiny512", "reverse"])
@torch.inference_mode()
def test_naive_encoder_equals_the_goldens(name: str) -> None:
    golden = read_golden(name)
    model = golden.model()
    naive = NaiveEncoder(official_tensors(model), model.config)
    images = torch.as_tensor(golden.images)
    np.testing.assert_array_equal(naive.encode(images).numpy(), golden["codes"])
    z = naive.encode_features(images)[: len(golden["encode_task_out"])].numpy()
    assert np.abs(z - golden["encode_task_out"]).max() < 1e-5


def test_benchmark_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/encoder.py", "--sizes", "sample", "--batch-size", "2"]
    command += ["--repetitions", "1", "--threads", "1", "--end-to-end", "40"]
    command += ["--json", str(tmp_path / "encoder.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    (result,) = json.loads((tmp_path / "encoder.json").read_text())
    assert result["codes_equal_fraction"] == 1.0
    assert f"| {result['speedup']:.2f} |" in run.stdout
    assert result["end_to_end_images_per_s"] > 0
    assert f"| {result['end_to_end_images_per_s'] / result['images_per_s']:.2f} |" in run.stdout


def test_neighbours_change_no_code_of_a_picture() -> None:
    command = [sys.executable, "-m", "benchmarks.code_agreement", "--precisions", "fp32", "bf16"]
    run = subprocess.run(
        [*command, "--limit", "20"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    fp32, bf16 = (line.split() for line in run.stdout.splitlines()[2:])
    assert fp32[1:4] == ["640", "of", "640"]
    assert (fp32[-1], bf16[-1]) == ("0", "0"), "codes changed with the neighbours"
