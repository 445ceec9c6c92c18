"""The programs of a step compile for a TPU, with the kernels that are meant for it."""

import collections
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the compiler for TPUs, libtpu, is not installed",
  ),
]
ROOT = pathlib.Path(__file__).parents[2]
MODELS = ("qwen2.5-1.5b", "qwen3", "qwen3_moe", "deepseek_v3")
HBM = 16 * 2**30  # bytes of a v5e chip


@pytest.mark.parametrize("model", MODELS)
def test_update_score_and_rollout(model):
  """In a process of its own: libtpu reads its environment when jax starts."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # it would wait for a cloud's metadata server
    "XLA_FLAGS": "",  # it ends a process that has flags it does not know
  }
  found = subprocess.run(
    [sys.executable, "-m", "tests.tpu.programs", model],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  seen = json.loads(found.stdout.splitlines()[-1])
  forward, of_queries, of_keys = (
    f"splash_mha_{name}_residuals"
    for name in ("fwd_segmented", "dq_segmented_no", "dkv_segmented_no")
  )
  assert set(seen["score"]["kernels"]) == {forward}
  used = collections.Counter(seen["update"]["kernels"])
  assert set(used) == {forward, of_queries, of_keys}
  # What attention made is kept for the backward pass.
  assert used[forward] == used[of_queries] == used[of_keys]
  for name, program in seen.items():
    assert program["bytes"] < HBM, name
