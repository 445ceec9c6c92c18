"""GGUF files of the llama architecture: metadata to ModelConfig, blocks to arrays."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import jax
import numpy as np

from r1jax.errors import InputError, one_of
from r1jax.models import assemble
from r1jax.models.config import ModelConfig

NAMES = {
  "embed": "token_embd.weight",
  "layers/attn_norm": "blk.{z}.attn_norm.weight",
  "layers/attn/q": "blk.{z}.attn_q.weight",
  "layers/attn/k": "blk.{z}.attn_k.weight",
  "layers/attn/v": "blk.{z}.attn_v.weight",
  "layers/attn/o": "blk.{z}.attn_output.weight",
  "layers/mlp_norm": "blk.{z}.ffn_norm.weight",
  "layers/mlp/gate": "blk.{z}.ffn_gate.weight",
  "layers/mlp/up": "blk.{z}.ffn_up.weight",
  "layers/mlp/down": "blk.{z}.ffn_down.weight",
  "final_norm": "output_norm.weight",
  "head": "output.weight",
}

# Metadata of the architecture; what is not named here is refused.
_REQUIRED = {
  "block_count": "depth",
  "context_length": "max_length",
  "embedding_length": "width",
  "feed_forward_length": "ffw",
  "attention.head_count": "heads",
  "attention.layer_norm_rms_epsilon": "norm_eps",
}
_OPTIONAL = ("attention.head_count_kv", "rope.freq_base", "vocab_size")
_HEAD_DIMS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
# Groups of keys about the file, its maker and the vocabulary.
_HARMLESS = ("GGUF.", "general.", "tokenizer.", "quantize.")


def config_from_gguf(
  fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
  """The shape of a model.

  Args:
    fields: {metadata key: value}.
    shapes: {tensor name: shape, slowest axis first}.

  Raises:
    InputError: another architecture, or a key that is absent or not understood (rope
      scaling, experts, splits); the message names it.
  """
  one_of(str(fields.get("general.architecture")), ["llama"], key="general.architecture")
  known = {f"llama.{key}" for key in (*_REQUIRED, *_OPTIONAL, *_HEAD_DIMS)}
  for key, value in fields.items():
    if key not in known and not key.startswith(_HARMLESS):
      raise InputError(f"metadata {key}={value!r} is not understood")
  absent = [key for key in _REQUIRED if f"llama.{key}" not in fields]
  if absent or NAMES["embed"] not in shapes:
    raise InputError(f"no {', '.join(f'llama.{k}' for k in absent) or NAMES['embed']}")
  sizes = {ours: fields[f"llama.{key}"] for key, ours in _REQUIRED.items()}
  head_dims = {
    fields[f"llama.{key}"] for key in _HEAD_DIMS if f"llama.{key}" in fields
  } or {sizes["width"] // sizes["heads"]}
  if len(head_dims) > 1:
    raise InputError(
      f"llama.{', llama.'.join(_HEAD_DIMS)} must be one number, got {sorted(head_dims)}"
    )
  return ModelConfig(
    **sizes,
    kv_heads=fields.get("llama.attention.head_count_kv", sizes["heads"]),
    head_dim=head_dims.pop(),
    vocab=fields.get("llama.vocab_size", shapes[NAMES["embed"]][0]),
    rope_base=float(fields.get("llama.rope.freq_base", 10_000.0)),
    tied_head=NAMES["head"] not in shapes,
    name=str(fields.get("general.name", "llama")),
  )


def _open(path: str | os.PathLike) -> tuple[gguf.GGUFReader, ModelConfig]:
  path = pathlib.Path(path)
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, OSError) as e:
    raise InputError(f"{path}: not a GGUF file that can be read ({e})") from e
  # The vocabulary's long lists are left in the file.
  fields = {
    key: field.contents()
    for key, field in reader.fields.items()
    if not key.startswith("tokenizer.")
  }
  try:
    return reader, config_from_gguf(fields, _shapes(reader))
  except InputError as e:
    raise InputError(f"{path}: {e}") from e


def _shapes(reader: gguf.GGUFReader) -> dict[str, tuple[int, ...]]:
  return {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}


def read_config(path: str | os.PathLike) -> ModelConfig:
  """The shape of the model in a file, without its weights."""
  return _open(path)[1]


def load_gguf(
  path: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  put: assemble.Put = assemble.put_default,
) -> tuple[ModelConfig, dict]:
  """Reads and dequantises a file, tensor by tensor.

  Args:
    dtype: of the parameters; blocks are dequantised in float32 and rounded to it.
    put: (path, stacked array) -> array on devices.

  Raises:
    InputError: see `config_from_gguf` and `assemble.gather`; also a block type that the
      gguf package cannot dequantise.
  """
  reader, c = _open(path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  heads = {
    NAMES[f"layers/attn/{part}"].format(z=z): count
    for part, count in (("q", c.heads), ("k", c.kv_heads))
    for z in range(c.depth)
  }

  def read(name: str) -> np.ndarray:
    tensor = tensors[name]
    try:
      stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as e:
      raise InputError(
        f"{path}: {name} has block type {tensor.tensor_type.name}, which the gguf "
        "package cannot dequantise"
      ) from e
    return unpermute(stored, heads[name]) if name in heads else stored

  params = assemble.gather(
    c,
    names=NAMES,
    found=_shapes(reader),
    read=read,
    dtype=dtype,
    put=put,
    source=str(path),
  )
  return c, params


def unpermute(stored: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q or k [heads * H, D], from adjacent rotary pairs to rotated halves.

  llama.cpp's converter interleaves the two halves of each head so that a pair of
  coordinates that turn together are neighbours; Hugging Face and we keep them H / 2
  apart.
  """
  rows, width = stored.shape
  pairs = stored.reshape(heads, rows // heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(rows, width)
