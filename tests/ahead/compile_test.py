"""The programs of a step compile for devices that are not here, with their kernels."""

import collections
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
HBM = {"v5e": 16 * 2**30, "h100": 80 * 2**30}  # bytes of a device


def needs(package: str, what: str) -> pytest.MarkDecorator:
  is_missing = importlib.util.find_spec(package) is None
  reason = f"the compiler for {what}, {package}, is not installed"
  return pytest.mark.skipif(is_missing, reason=reason)


def compiled(device: str, model: str) -> dict:
  """In a process of its own: libtpu reads its environment when jax starts."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # it would wait for a cloud's metadata server
    "XLA_FLAGS": "",  # it ends a process that has flags it does not know
  }
  found = subprocess.run(
    [sys.executable, "-m", "tests.ahead.programs", device, model],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  seen = json.loads(found.stdout.splitlines()[-1])
  for name, program in seen.items():
    assert program["bytes"] < HBM[device], name
  return seen


@needs("libtpu", "TPUs")
@pytest.mark.parametrize("model", ["qwen2.5-1.5b", "qwen3", "qwen3_moe", "deepseek_v3"])
def test_for_tpus(model):
  seen = compiled("v5e", model)
  forward, of_queries, of_keys = (
    f"splash_mha_{name}_residuals"
    for name in ("fwd_segmented", "dq_segmented_no", "dkv_segmented_no")
  )
  assert set(seen["score"]["kernels"]) == {forward}
  used = collections.Counter(seen["update"]["kernels"])
  assert set(used) == {forward, of_queries, of_keys}
  # What attention made is kept for the backward pass.
  assert used[forward] == used[of_queries] == used[of_keys]


@needs("jax_cuda13_plugin", "GPUs")
def test_for_gpus():
  """cuDNN among tokens, kept for the backward pass; in each decoded layer our kernel.

  The last layer's attention is not needed of a prompt, whose states nobody reads.
  """
  seen = compiled("h100", "qwen2.5-1.5b")
  masked, plain = "fmhaScaleBiasSoftmax", "fmhaSoftmax"
  assert seen["score"]["kernels"] == [masked]
  assert seen["update"]["kernels"] == [masked, f"{masked}Backward"]
  assert seen["rollout"]["kernels"] == [plain] * 2 + ["xla.gpu.triton"] * 3


@needs("jax_cuda13_plugin", "GPUs")
def test_latent_attention_compiles_for_gpus_without_a_kernel():
  seen = compiled("h100", "deepseek_v3")
  assert not any(program["kernels"] for program in seen.values())
