"""A model from wherever it lies: a GGUF file, a Hugging Face folder, or the hub."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from r1jax.errors import InputError
from r1jax.models.config import ModelConfig
from r1jax.weights import gguf, hf, hf_config, hub


def local_path(path: str | os.PathLike) -> pathlib.Path:
  """The .gguf file or the folder with config.json that a path stands for.

  Raises:
    InputError: nothing there, or no model; see `hub.download` for hf://org/name.
  """
  given = str(path)
  if given.startswith(hub.PREFIX):
    return hub.download(given)
  path = pathlib.Path(path)
  if not given or not path.exists():
    raise InputError(
      f"config.model.path: {given!r} does not exist; give a .gguf file, a Hugging Face "
      f"folder or {hub.PREFIX}org/name (`bash launch/fetch_smollm2.sh` brings "
      "SmolLM2-135M-Instruct into models/)"
    )
  if path.is_file() and path.suffix == ".gguf":
    return path
  if path.is_dir() and (path / "config.json").exists():
    return path
  found = sorted(path.glob("*.gguf")) if path.is_dir() else []
  if len(found) == 1:
    return found[0]
  names = ", ".join(file.name for file in found) or "no config.json and no .gguf"
  raise InputError(
    f"config.model.path: {given!r} is not a model ({names}); give one .gguf file or "
    "a Hugging Face folder with config.json"
  )


def read_config(path: str | os.PathLike) -> ModelConfig:
  """The shape of a model, without its weights: enough to plan where they go."""
  path = local_path(path)
  return gguf.read_config(path) if path.is_file() else hf_config.read_config(path)


def load_model(
  path: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  shardings: Any = None,
) -> tuple[ModelConfig, dict]:
  """Shape and parameters of a model; see `gguf.load_gguf` and `hf.load_hf`.

  Args:
    shardings: of the parameters, a tree; None is the first local device.

  Raises:
    InputError: nothing there, or not a model that this decoder computes.
  """
  path = local_path(path)
  load = gguf.load_gguf if path.is_file() else hf.load_hf
  return load(path, dtype=dtype, shardings=shardings)
