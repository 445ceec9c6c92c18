"""A real model and reference outputs, where this machine has them.

R1JAX_SMOLLM2 is the GGUF file that `bash launch/fetch_smollm2.sh` brings, R1JAX_GOLDEN
the folder of reference outputs; tests that need one that is absent are skipped.
"""

import json
import os
import pathlib

import numpy as np
import pytest

from r1jax.data.tokenizer import load_tokenizer
from r1jax.weights import paths

ROOT = pathlib.Path(__file__).parents[2]


def place(variable: str, default: str, what: str) -> pathlib.Path:
  path = pathlib.Path(os.environ.get(variable, ROOT / default))
  if not path.exists():
    pytest.skip(f"no {what} at {path}; set {variable}")
  return path


@pytest.fixture(scope="session", name="smollm2_path")
def _smollm2_path():
  return place(
    "R1JAX_SMOLLM2",
    "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "model (bash launch/fetch_smollm2.sh)",
  )


@pytest.fixture(scope="session", name="smollm2")
def _smollm2(smollm2_path):
  """(config, float32 parameters)."""
  return paths.load_model(smollm2_path)


@pytest.fixture(scope="session", name="smollm2_tokenizer")
def _smollm2_tokenizer(smollm2_path):
  return load_tokenizer(smollm2_path)


@pytest.fixture(scope="session", name="golden")
def _golden():
  """{prompt name: {text, greedy_text, ids, logits, logsumexp, argmax, greedy64}}."""
  folder = place("R1JAX_GOLDEN", "../shared/golden", "reference outputs")
  texts = json.loads((folder / "smollm2_135m.json").read_text(encoding="utf-8"))
  with np.load(folder / "smollm2_135m_float32.npz") as arrays:
    keys = ("ids", "logits", "logsumexp", "argmax", "greedy64")
    return {
      name: {**entry, **{key: arrays[f"{name}_{key}"] for key in keys}}
      for name, entry in texts.items()
    }
