"""A model from wherever it lies: a GGUF file or a Hugging Face folder."""

import os
import pathlib

import jax
import numpy as np

from r1jax.errors import InputError
from r1jax.models import assemble, gguf, hf
from r1jax.models.config import ModelConfig


def _resolve(path: str | os.PathLike) -> pathlib.Path:
  """A .gguf file or a folder with config.json."""
  given, path = str(path), pathlib.Path(path)
  if not given or not path.exists():
    raise InputError(
      f"config.model.path: {given!r} does not exist; give a .gguf file or a Hugging "
      "Face folder (`bash launch/fetch_smollm2.sh` brings SmolLM2-135M-Instruct into "
      "models/)"
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
  path = _resolve(path)
  return gguf.read_config(path) if path.is_file() else hf.read_config(path)


def load_model(
  path: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  put: assemble.Put = assemble.put_default,
) -> tuple[ModelConfig, dict]:
  """Shape and parameters of a model; see `gguf.load_gguf` and `hf.load_hf`.

  Raises:
    InputError: nothing there, or not a model that this decoder computes.
  """
  path = _resolve(path)
  load = gguf.load_gguf if path.is_file() else hf.load_hf
  return load(path, dtype=dtype, put=put)
