"""GGUF files: metadata to ModelConfig, blocks to arrays.

What keys and tensors mean is as in llama.cpp and its converter. DeepSeek's files, whose
layout of latent attention has changed in the meantime, are not read.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import jax
import numpy as np

from r1jax import gguf_files
from r1jax.errors import InputError, one_of
from r1jax.models import parameters, rope
from r1jax.models.config import Experts, Llama3Rope, ModelConfig, YarnRope
from r1jax.weights import assemble
from r1jax.weights.assemble import Layout, Piece

_TOP = {
  "embed": "token_embd.weight",
  "final_norm": "output_norm.weight",
  "head": "output.weight",
}
# {path below a stack: name below a block}. The experts of a layer are one tensor.
_LAYER = {
  "attn_norm": "attn_norm.weight",
  "attn/o": "attn_output.weight",
  **{f"attn/{part}": f"attn_{part}.weight" for part in "qkv"},
  **{f"attn/{part}_bias": f"attn_{part}.bias" for part in "qkv"},
  **{f"attn/{part}_norm": f"attn_{part}_norm.weight" for part in "qk"},
  "mlp_norm": "ffn_norm.weight",
  **{f"mlp/{part}": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
  "moe/router": "ffn_gate_inp.weight",
  **{
    f"moe/experts/{part}": f"ffn_{part}_exps.weight" for part in ("gate", "up", "down")
  },
}
# What follows from general.architecture.
_ARCHITECTURES = {
  "llama": {},
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": True},
  "qwen3moe": {"qk_norm": True},
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
_EXPERTS = {
  "expert_count": "count",
  "expert_used_count": "per_token",
  "expert_feed_forward_length": "ffw",
}
_OPTIONAL = ("attention.head_count_kv", "rope.freq_base", "vocab_size")
_HEAD_DIMS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_SCALING = {"factor": "factor", "original_context_length": "original_length"}
# Groups of keys about the file, its maker and the vocabulary.
_HARMLESS = ("GGUF.", "general.", "tokenizer.", "quantize.")
_ROPE_FACTORS = "rope_freqs.weight"


def config_from_gguf(
  fields: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  rope_factors: np.ndarray | None = None,
) -> ModelConfig:
  """The shape of a model.

  Args:
    fields: {metadata key: value}.
    shapes: {tensor name: shape, slowest axis first}.
    rope_factors: what divides the rotary frequencies, where the file says so.

  Raises:
    InputError: another architecture, or a key that is absent or not understood; the
      message names it.
  """
  key = "general.architecture"
  arch = one_of(str(fields.get(key)), _ARCHITECTURES, key=key)
  own = {
    name.removeprefix(f"{arch}."): value
    for name, value in fields.items()
    if name.startswith(f"{arch}.")
  }
  experts = _EXPERTS if arch == "qwen3moe" else {}
  scaling = ("type", "finetuned", *_SCALING)
  known = {*_REQUIRED, *experts, *_OPTIONAL, *_HEAD_DIMS}
  known |= {f"rope.scaling.{name}" for name in scaling}
  for name, value in fields.items():
    is_known = name.startswith(f"{arch}.") and name.removeprefix(f"{arch}.") in known
    if not is_known and not name.startswith(_HARMLESS):
      raise InputError(f"metadata {name}={value!r} is not understood")
  absent = [f"{arch}.{name}" for name in (*_REQUIRED, *experts) if name not in own]
  if absent or _TOP["embed"] not in shapes:
    raise InputError(f"no {', '.join(absent) or _TOP['embed']}")
  sizes = {ours: own[name] for name, ours in _REQUIRED.items()}
  kv_heads = own.get("attention.head_count_kv", sizes["heads"])
  for name, value in (("", sizes["heads"]), ("_kv", kv_heads)):
    if not isinstance(value, int):
      raise InputError(
        f"metadata {arch}.attention.head_count{name}={value!r}: must be one number"
      )
  head_dims = {own[name] for name in _HEAD_DIMS if name in own}
  head_dims = head_dims or {sizes["width"] // sizes["heads"]}
  if len(head_dims) > 1:
    names = ", ".join(f"{arch}.{name}" for name in _HEAD_DIMS)
    raise InputError(f"{names} must be one number, got {sorted(head_dims)}")
  base = float(own.get("rope.freq_base", 10_000.0))
  head_dim = head_dims.pop()
  return ModelConfig(
    **sizes,
    **_ARCHITECTURES[arch],
    kv_heads=kv_heads,
    head_dim=head_dim,
    vocab=own.get("vocab_size", shapes[_TOP["embed"]][0]),
    rope_base=base,
    rope_scaling=_rope_scaling(arch, own, rope_factors, base, head_dim),
    experts=Experts(**{ours: own[name] for name, ours in experts.items()})
    if experts
    else None,
    tied_head=_TOP["head"] not in shapes,
    name=str(fields.get("general.name", arch)),
  )


def _rope_scaling(
  arch: str,
  own: Mapping[str, Any],
  factors: np.ndarray | None,
  base: float,
  head_dim: int,
) -> Llama3Rope | YarnRope | None:
  prefix = "rope.scaling."
  kind = one_of(
    own.get(f"{prefix}type", "none"), ("none", "yarn"), key=f"{arch}.{prefix}type"
  )
  given = {ours: own.get(f"{prefix}{name}") for name, ours in _SCALING.items()}
  if factors is not None:
    scaling = _llama3(factors, base, head_dim)
    if kind == "none" and scaling is not None:
      return scaling
    raise InputError(
      f"{_ROPE_FACTORS} has other factors than Llama 3.1 to 3.3, and these only are "
      "understood"
      if kind == "none"
      else f"{_ROPE_FACTORS} beside {arch}.{prefix}type={kind!r} is not understood"
    )
  if kind == "none":
    for name, ours in _SCALING.items():
      if given[ours] is not None:
        raise InputError(
          f"metadata {arch}.{prefix}{name}={given[ours]!r} is not understood without "
          f"{arch}.{prefix}type"
        )
    return None
  absent = [name for name, ours in _SCALING.items() if given[ours] is None]
  if absent:
    raise InputError(f"no {arch}.{prefix}{absent[0]}, and {prefix}type is {kind!r}")
  return YarnRope(**given)


def _llama3(factors: np.ndarray, base: float, head_dim: int) -> Llama3Rope | None:
  """The scaling of the released models that has these factors, or None."""
  scaling = Llama3Rope(float(factors.max()), 8192)
  one = ModelConfig(
    depth=1,
    width=1,
    heads=1,
    kv_heads=1,
    head_dim=head_dim,
    ffw=1,
    vocab=1,
    rope_base=base,
  )
  plain, slowed = (
    rope.frequencies(dataclasses.replace(one, rope_scaling=kind))
    for kind in (None, scaling)
  )
  fits = factors.shape == plain.shape and np.allclose(
    plain / factors, slowed, rtol=1e-4
  )
  return scaling if fits else None


def layout(c: ModelConfig, *, turns_neighbours: bool) -> Layout:
  """Where a model's parameters lie in a file.

  Args:
    turns_neighbours: in each head of q and k, what turns together lies side by side,
      as llama.cpp wants it of the llama architecture; here it is half a head apart.
  """
  first = {stack: start for stack, (start, _) in parameters.stacks(c).items()}

  def locate(path: str, index: tuple[int, ...]) -> Piece:
    if path in _TOP:
      return Piece(_TOP[path])
    stack, _, below = path.partition("/")
    layer, *expert = index
    return Piece(f"blk.{first[stack] + layer}.{_LAYER[below]}", tuple(expert))

  order = np.arange(c.head_dim).reshape(-1, 2).T.ravel()
  paths = ("layers/attn/q", "layers/attn/k") if turns_neighbours else ()
  return Layout(locate, dict.fromkeys(paths, order))


class _File:
  """A file that is open, and the shape of its model."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    reader = gguf_files.read(self.path)
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    self.shapes = {
      name: tuple(int(n) for n in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }
    # The vocabulary's long lists are left in the file.
    fields = {
      key: field.contents()
      for key, field in reader.fields.items()
      if not key.startswith("tokenizer.")
    }
    self.arch = fields.get("general.architecture")
    factors = None
    if self.arch == "llama" and _ROPE_FACTORS in self.shapes:
      size = self.shapes.pop(_ROPE_FACTORS)[0]
      factors = self.read(_ROPE_FACTORS, (slice(0, size),))
    try:
      self.config = config_from_gguf(fields, self.shapes, factors)
    except InputError as e:
      raise InputError(f"{self.path}: {e}") from e

  def read(self, name: str, index: tuple) -> np.ndarray:
    """A part of a tensor in float32.

    Args:
      index: a number or slice for each axis.
    """
    tensor = self._tensors[name]
    *outer, columns = index
    kind = tensor.tensor_type
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    first = columns.start // block
    blocks = slice(first, -(-columns.stop // block))
    width = num_bytes // tensor.data.itemsize  # of a block in the file
    part = tensor.data[(*outer, slice(blocks.start * width, blocks.stop * width))]
    try:
      numbers = gguf.quants.dequantize(part, kind)
    except NotImplementedError as e:
      raise InputError(
        f"{self.path}: {name} has block type {kind.name}, which the gguf package "
        "cannot dequantise"
      ) from e
    return numbers[..., columns.start - first * block : columns.stop - first * block]


def read_config(path: str | os.PathLike) -> ModelConfig:
  """The shape of the model in a file, without its weights."""
  return _File(path).config


def load_gguf(
  path: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  shardings: Any = None,
) -> tuple[ModelConfig, dict]:
  """Reads and dequantises a file, block by block.

  Args:
    dtype: of the parameters; what is dequantised in float32 is rounded to it.
    shardings: of the parameters, a tree; None is the first local device.

  Raises:
    InputError: see `config_from_gguf` and `assemble.gather`; also a block type that the
      gguf package cannot dequantise.
  """
  file = _File(path)
  params = assemble.gather(
    file.config,
    layout(file.config, turns_neighbours=file.arch == "llama"),
    found=file.shapes,
    read=file.read,
    dtype=dtype,
    shardings=shardings,
    source=str(path),
  )
  return file.config, params
