"""Hugging Face folders: config.json and safetensors, in and out."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.weights import assemble, hf_config, tensor_files
from r1jax.weights.assemble import Layout, Piece

MAX_SHARD_BYTES = 5 * 10**9
_TOP = {
  "embed": "model.embed_tokens.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}
# {path below a stack: name below a layer}; {e} is the expert.
_LAYER = {
  "attn_norm": "input_layernorm.weight",
  "attn/o": "self_attn.o_proj.weight",
  "mlp_norm": "post_attention_layernorm.weight",
  **{f"mlp/{part}": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
  "moe/router": "mlp.gate.weight",
  "moe/bias": "mlp.gate.e_score_correction_bias",
  **{
    f"moe/experts/{part}": f"mlp.experts.{{e}}.{part}_proj.weight"
    for part in ("gate", "up", "down")
  },
  **{
    f"moe/shared/{part}": f"mlp.shared_experts.{part}_proj.weight"
    for part in ("gate", "up", "down")
  },
  "embed_norm": "enorm.weight",
  "hidden_norm": "hnorm.weight",
  "proj": "eh_proj.weight",
  "norm": "shared_head.norm.weight",
}
_GROUPED_QUERY = {
  **{f"attn/{part}": f"self_attn.{part}_proj.weight" for part in "qkv"},
  **{f"attn/{part}_bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
  **{f"attn/{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"},
}
_LATENT = {
  "attn/q": "self_attn.q_proj.weight",
  "attn/q_down": "self_attn.q_a_proj.weight",
  "attn/q_norm": "self_attn.q_a_layernorm.weight",
  "attn/q_up": "self_attn.q_b_proj.weight",
  "attn/kv_down": "self_attn.kv_a_proj_with_mqa.weight",
  "attn/kv_norm": "self_attn.kv_a_layernorm.weight",
  "attn/kv_up": "self_attn.kv_b_proj.weight",
}
# How transformers 5 holds the experts of a layer, and may store them.
_FUSED = {
  "gate": ("mlp.experts.gate_up_proj", 0),
  "up": ("mlp.experts.gate_up_proj", 1),
  "down": ("mlp.experts.down_proj", 0),
}
_FP8 = {
  "quant_method": "fp8",
  "fmt": "e4m3",
  "weight_block_size": [tensor_files.SCALE_BLOCK] * 2,
  "activation_scheme": "dynamic",
}


def layout(c: ModelConfig, *, fused: bool = False) -> Layout:
  """Where a model's parameters lie in a folder.

  Args:
    fused: the experts of a layer are one tensor, or two with gate above up.
  """
  stacks = parameters.stacks(c)
  names = _LAYER | (_GROUPED_QUERY if c.latent is None else _LATENT)

  def locate(path: str, index: tuple[int, ...]) -> Piece:
    if path in _TOP:
      return Piece(_TOP[path])
    stack, _, below = path.partition("/")
    layer, *expert = index
    prefix = f"model.layers.{stacks[stack][0] + layer}."
    if fused and expert:
      name, place = _FUSED[below.rpartition("/")[2]]
      return Piece(prefix + name, tuple(expert), place * c.experts.ffw)
    return Piece(prefix + names[below].format(e=expert[0] if expert else ""))

  return Layout(locate, orders(c))


def orders(c: ModelConfig) -> dict[str, np.ndarray]:
  """{path: for each of our last axis' entries, which stored one it is}.

  DeepSeek's files hold what turns together in latent attention side by side, (2i,
  2i + 1), and we half of the rotary part apart.
  """
  if c.latent is None:
    return {}
  before = {
    "attn/q": c.latent.nope_dim,
    "attn/q_up": c.latent.nope_dim,
    "attn/kv_down": c.latent.kv_rank,
  }
  rotary = np.arange(c.latent.rope_dim).reshape(-1, 2).T.ravel()
  return {
    f"{stack}/{path}": np.concatenate([np.arange(size), size + rotary])
    for stack in parameters.stacks(c)
    for path, size in before.items()
  }


def copies(c: ModelConfig) -> dict[str, str]:
  """{name: the tensor that it repeats} of what files hold a second time."""
  head = _TOP["embed"] if c.tied_head else _TOP["head"]
  found = {_TOP["head"]: head} if c.tied_head else {}
  for module in range(c.mtp_depth):
    prefix = f"model.layers.{c.depth + module}."
    found[f"{prefix}embed_tokens.weight"] = _TOP["embed"]
    found[f"{prefix}shared_head.head.weight"] = head
  return found


def load_hf(
  folder: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  shardings: Any = None,
) -> tuple[ModelConfig, dict]:
  """Reads config.json and safetensors, one file or several with an index.

  Args:
    dtype: of the parameters; what is stored is rounded to it.
    shardings: of the parameters, a tree; None is the first local device.

  Raises:
    InputError: see `hf_config.config_from_hf`, `tensor_files.TensorFiles` and
      `assemble.gather`; also tensors that repeat others and differ from them.
  """
  folder = pathlib.Path(folder)
  c = hf_config.read_config(folder)
  quantization = hf_config.read_fields(folder).get("quantization_config")
  if quantization is not None:
    _check_quantization(folder, quantization)
  files = tensor_files.TensorFiles(folder, float8=quantization is not None)
  found = {
    name: shape
    for name, shape in files.shapes.items()
    if not name.endswith(".rotary_emb.inv_freq")  # wavelengths, in old files
  }
  _check_mtp(folder, c, found)
  for name, original in copies(c).items():
    if name in found and original in found:
      _check_equal(folder, files, name, original)
      del found[name]
  fused = any(name.endswith(_FUSED["gate"][0]) for name in found)
  params = assemble.gather(
    c,
    layout(c, fused=fused),
    found=found,
    read=files.read,
    dtype=dtype,
    shardings=shardings,
    source=str(folder),
  )
  return c, params


def _check_quantization(folder: pathlib.Path, fields: Mapping[str, Any]) -> None:
  for name, value in fields.items():
    if name not in _FP8 or value != _FP8[name]:
      raise InputError(
        f"{folder}: config.json: quantization_config has {name}={value!r}; only "
        f"{_FP8} is understood"
      )
  for name in ("quant_method", "weight_block_size"):
    if name not in fields:
      raise InputError(f"{folder}: config.json: quantization_config has no {name}")


def _check_mtp(
  folder: pathlib.Path, c: ModelConfig, found: Mapping[str, tuple[int, ...]]
) -> None:
  prefixes = [f"model.layers.{c.depth + module}." for module in range(c.mtp_depth)]
  for prefix in prefixes:
    if not any(name.startswith(prefix) for name in found):
      wanted = [f"{prefix}{_LAYER[part]}" for part in ("embed_norm", "proj", "norm")]
      raise InputError(
        f"{folder}: config.json has num_nextn_predict_layers={c.mtp_depth}, and the "
        f"module's tensors ({', '.join(wanted)}, ...) are missing, as transformers "
        "leaves them out when it saves: set num_nextn_predict_layers to 0 in "
        "config.json, or bring the files that have them"
      )


def _check_equal(
  folder: pathlib.Path, files: tensor_files.TensorFiles, name: str, original: str
) -> None:
  shape = files.shapes[name]
  same = shape == files.shapes[original]
  step = max(assemble.BLOCK_SIZE // max(shape[-1], 1), 1)
  for first in range(0, shape[0] if same else 0, step):
    rows = slice(first, min(first + step, shape[0])), slice(0, shape[1])
    same = same and np.array_equal(files.read(name, rows), files.read(original, rows))
  if not same:
    why = "tie_word_embeddings is true"
    if name not in _TOP.values():
      why = "the module that predicts further tokens shares it"
    raise InputError(f"{folder}: {name} differs from {original}, yet {why}")


def save_hf(
  folder: str | os.PathLike,
  c: ModelConfig,
  params: dict,
  tokenizer: Any = None,
  *,
  dtype: jax.typing.DTypeLike | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
  """Writes a folder that `load_hf` and transformers read.

  Every file appears whole or not at all; weights that were in the folder are replaced.
  The host holds one stored tensor at a time, and parameters smaller than a block.

  Args:
    params: arrays that this process can fetch whole.
    tokenizer: a `data.tokenizer.Tokenizer`, saved beside the weights.
    dtype: what is stored; None is that of the parameters. The biases by which experts
      are chosen keep theirs: their steps are smaller than those of bfloat16.
    max_shard_bytes: of the tensors of one file.

  Returns:
    Names of the files of weights.
  """
  folder = pathlib.Path(folder)
  fields = hf_config.config_to_hf(c)
  folder.mkdir(parents=True, exist_ok=True)
  make, tensors = _stored(c, params, dtype)
  files = tensor_files.split(tensors, max_shard_bytes)
  names = tensor_files.file_names(len(files))
  for name, own in zip(names, files, strict=True):
    tensor_files.write_file(
      _part(folder, name), {key: tensors[key] for key in own}, make
    )
  for path in folder.glob("model*.safetensors"):
    if path.name not in names:
      path.unlink()
  (folder / tensor_files.INDEX).unlink(missing_ok=True)
  for name in names:
    os.replace(_part(folder, name), folder / name)
  if len(names) > 1:
    where = {key: name for name, own in zip(names, files, strict=True) for key in own}
    total = sum(map(tensor_files.num_bytes, tensors.values()))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _write_json(folder / tensor_files.INDEX, index)
  stored = params["embed"].dtype if dtype is None else np.dtype(dtype)
  fields["torch_dtype"] = str(stored)
  if tokenizer is not None:
    tokenizer.save(folder)
    ids = {
      f"{kind}_token_id": getattr(tokenizer, f"{kind}_id")
      for kind in ("bos", "eos", "pad")
    }
    fields |= ids
    _write_json(
      folder / "generation_config.json",
      ids | {"eos_token_id": list(tokenizer.stop_ids)},
    )
  _write_json(folder / "config.json", fields)
  return names


def _stored(c: ModelConfig, params: dict, dtype: jax.typing.DTypeLike | None):
  """(name -> tensor, {name: (shape, dtype)}) of all tensors, layer by layer."""
  places, how = {}, layout(c)
  flat = trees.flatten(params)
  small = {
    path: np.asarray(array)
    for path, array in flat.items()
    if array.size <= assemble.BLOCK_SIZE
  }
  tensors = {}
  for path, index, shape, piece in assemble.pieces(c, how):
    own = flat[path].dtype if dtype is None or path.endswith("moe/bias") else dtype
    places[piece.name] = path, index
    tensors[piece.name] = assemble.stored_shape(path, shape), np.dtype(own)
  for name, original in copies(c).items():
    if name != _TOP["head"]:  # a tied head is written once
      places[name], tensors[name] = places[original], tensors[original]

  def make(name: str) -> np.ndarray:
    path, index = places[name]
    if path in small:
      ours = small[path][index]
    else:
      ours = np.asarray(_layer(flat[path], index) if index else flat[path])
    stored = assemble.to_stored(path, ours, how.orders.get(path))
    if path not in small and not stored.flags.c_contiguous:
      # jax turns an array several times as fast as numpy
      device = next(iter(flat[path].devices()))
      stored = np.asarray(jax.device_put(stored, device))
    return stored.astype(tensors[name][1], copy=False)

  return make, {name: tensors[name] for name in sorted(tensors, key=_by_layer)}


@jax.jit
def _layer(array: jax.Array, index: tuple[int, ...]) -> jax.Array:
  return array[index]


def _by_layer(name: str) -> list[tuple[int, int | str]]:
  """Sorts numbers in names as numbers."""
  words = name.split(".")
  return [(0, int(word)) if word.isdigit() else (1, word) for word in words]


def _part(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / f".{name}.{os.getpid()}.part"


def _write_json(path: pathlib.Path, value: Any) -> None:
  part = _part(path.parent, path.name)
  part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  os.replace(part, path)
