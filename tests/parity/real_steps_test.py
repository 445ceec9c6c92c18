"""Two steps of reinforcement learning of a real model on real problems."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from tests.parity.conftest import place

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_two_grpo_steps_of_smollm2_on_gsm8k(smollm2_path, tmp_path):
  """R1, R22: the sampler's and the trainer's log-probs of 135 M weights agree."""
  gsm8k = place("R1JAX_GSM8K", "../shared/data/gsm8k", "GSM8K's published files")
  work = tmp_path / "run"
  result = subprocess.run(
    [
      *(sys.executable, "-m", "r1jax.train"),
      "--config=configs/gsm8k_smollm2.py:two_steps",
      f"--config.model.path={smollm2_path}",
      f"--config.data.dir={gsm8k}",
      f"--config.data.data_dir={tmp_path / 'tfds'}",
      f"--workdir={work}",
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=1500,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  lines = [json.loads(line) for line in (work / "metrics.jsonl").open()]
  steps = [line for line in lines if "reward/total" in line]
  assert [line["step"] for line in steps] == [1, 2]
  for line in steps:
    assert line["policy/logp_gap_max"] < 2e-3
    assert math.isfinite(line["optim/grad_norm"])
    assert line["rollout/length_mean"] > 1
  assert lines[-1]["eval/gsm8k_test/n"] == 4
  sample = json.loads((work / "samples/zero/train_000001.jsonl").open().readline())
  assert sample["prompt"].startswith("A conversation between User and Assistant.")
  assert (work / "report.html").exists()
