"""Models by name: hf://org/name[@revision], through huggingface_hub and its cache."""

import pathlib
import re

import huggingface_hub
from huggingface_hub import errors

from r1jax.errors import InputError

PREFIX = "hf://"
# Weights, shape, tokenizer and chat template; of the top folder, since others hold the
# same weights in other formats.
_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja")
_UNWANTED = ("*/*", "consolidated*")
_TIMEOUT_S = 5.0  # for the first answer; nobody waits for a network that is not there


def download(path: str) -> pathlib.Path:
  """The folder of a model, downloaded unless the cache has it.

  Raises:
    InputError: not such a name, no such model, or no way to get it.
  """
  match = re.fullmatch(
    rf"{PREFIX}(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", path
  )
  if match is None:
    raise InputError(
      f"config.model.path: {path!r} must read {PREFIX}org/name or "
      f"{PREFIX}org/name@revision"
    )
  try:
    folder = huggingface_hub.snapshot_download(
      match["name"],
      revision=match["revision"],
      allow_patterns=list(_WANTED),
      ignore_patterns=list(_UNWANTED),
      etag_timeout=_TIMEOUT_S,
    )
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
    raise InputError(
      f"config.model.path: {path!r}: there is no such model or revision, or it may not "
      f"be read without a token (`hf auth login`, or HF_TOKEN): {_first_line(e)}"
    ) from e
  except (errors.HTTPError, ValueError, OSError) as e:
    raise InputError(
      f"config.model.path: {path!r} cannot be downloaded ({_first_line(e)}). Without a "
      f"network: `hf download {match['name']} --local-dir FOLDER` elsewhere, and give "
      "the folder, or set HF_HOME to a cache that has it"
    ) from e
  return pathlib.Path(folder)


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
