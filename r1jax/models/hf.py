"""Hugging Face folders: config.json and safetensors, in and out.

Every field of config.json acts, or is known not to matter, or is refused by name: a
model that loads is the model that was meant.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from r1jax import trees
from r1jax.errors import InputError, one_of
from r1jax.models import assemble
from r1jax.models.config import ModelConfig

_LAYER = "model.layers.{z}."
NAMES = {
  "embed": "model.embed_tokens.weight",
  "layers/attn_norm": _LAYER + "input_layernorm.weight",
  "layers/attn/q": _LAYER + "self_attn.q_proj.weight",
  "layers/attn/k": _LAYER + "self_attn.k_proj.weight",
  "layers/attn/v": _LAYER + "self_attn.v_proj.weight",
  "layers/attn/o": _LAYER + "self_attn.o_proj.weight",
  "layers/mlp_norm": _LAYER + "post_attention_layernorm.weight",
  "layers/mlp/gate": _LAYER + "mlp.gate_proj.weight",
  "layers/mlp/up": _LAYER + "mlp.up_proj.weight",
  "layers/mlp/down": _LAYER + "mlp.down_proj.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}

# Fields that set a ModelConfig attribute of the same meaning.
_SIZES = {
  "num_hidden_layers": "depth",
  "hidden_size": "width",
  "num_attention_heads": "heads",
  "intermediate_size": "ffw",
  "vocab_size": "vocab",
  "rms_norm_eps": "norm_eps",
  "max_position_embeddings": "max_length",
}
_DERIVED = frozenset(
  {"num_key_value_heads", "head_dim", "rope_theta", "rope_parameters"}
  | {"tie_word_embeddings", "architectures", "_name_or_path"}
)
# Fields with one value that this decoder computes; absent means that value.
_FIXED = {
  "model_type": "llama",
  "hidden_act": "silu",
  "rope_scaling": None,
  "rope_interleaved": False,
  "attention_bias": False,
  "mlp_bias": False,
  "attention_dropout": 0.0,
  "pretraining_tp": 1,
  "is_llama_config": True,
}
# Fields about the tokenizer, the initial draw or another program.
_HARMLESS = frozenset(
  {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache"}
  | {"torch_dtype", "dtype", "transformers_version", "transformers.js_config"}
)
_DTYPES = ("F32", "F16", "BF16")


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
  """The shape of a model from the object in its config.json.

  Raises:
    InputError: an architecture, field or value that this decoder does not compute, or
      a size that is absent; the message names it.
  """
  for name in fields.get("architectures") or ():
    one_of(name, ["LlamaForCausalLM"], key="config.json: architectures")
  for name, value in fields.items():
    if name in _FIXED:
      if value != _FIXED[name]:
        raise InputError(
          f"config.json: {name}={value!r} is not supported, only {_FIXED[name]!r}"
        )
    elif name not in _SIZES and name not in _DERIVED | _HARMLESS:
      raise InputError(f"config.json: field {name!r} (={value!r}) is not understood")
  absent = [name for name in ("model_type", *_SIZES) if name not in fields]
  if absent:
    raise InputError(f"config.json: no {', '.join(absent)}")
  sizes = {ours: fields[name] for name, ours in _SIZES.items()}
  heads, kv_heads, head_dim = (
    fields.get(name)
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
  )
  return ModelConfig(
    **sizes,
    kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=_per_head(sizes["width"], heads) if head_dim is None else head_dim,
    rope_base=_rope_base(fields),
    tied_head=fields.get("tie_word_embeddings", False),
    name=fields.get("_name_or_path") or "llama",
  )


def _per_head(width: int, heads: int) -> int:
  if width % heads:
    raise InputError(
      f"config.json: hidden_size={width} is not a multiple of num_attention_heads="
      f"{heads}, and there is no head_dim"
    )
  return width // heads


def _rope_base(fields: Mapping[str, Any]) -> float:
  """rope_theta, which transformers 5 writes inside rope_parameters."""
  nested = dict(fields.get("rope_parameters") or {})
  kind = nested.pop("rope_type", "default")
  given = [fields.get("rope_theta"), nested.pop("rope_theta", None)]
  bases = {float(base) for base in given if base is not None} or {10_000.0}
  if kind != "default" or nested or len(bases) > 1:
    raise InputError(
      f"config.json: rope_parameters={fields['rope_parameters']!r} is not supported; "
      f"it may have rope_theta, once, and rope_type='default' (got {sorted(bases)})"
    )
  return bases.pop()


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
  """The object that `config_from_hf` reads back as `c`."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "_name_or_path": c.name,
    **{name: getattr(c, ours) for name, ours in _SIZES.items()},
    "num_key_value_heads": c.kv_heads,
    "head_dim": c.head_dim,
    "rope_theta": c.rope_base,
    "tie_word_embeddings": c.tied_head,
    **{name: _FIXED[name] for name in ("model_type", "hidden_act", "rope_scaling")},
    **{name: _FIXED[name] for name in ("attention_bias", "mlp_bias")},
  }


def read_config(folder: str | os.PathLike) -> ModelConfig:
  """The shape of the model in a folder, without its weights."""
  path = pathlib.Path(folder) / "config.json"
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise InputError(f"{path} does not exist; a model folder has one") from e
  except json.JSONDecodeError as e:
    raise InputError(f"{path}: not JSON ({e})") from e
  try:
    return config_from_hf(fields)
  except InputError as e:
    raise InputError(f"{folder}: {e}") from e


def load_hf(
  folder: str | os.PathLike,
  *,
  dtype: jax.typing.DTypeLike = np.float32,
  put: assemble.Put = assemble.put_default,
) -> tuple[ModelConfig, dict]:
  """Reads config.json and safetensors, one file or several with an index.

  Args:
    dtype: of the parameters; what is stored is rounded to it.
    put: (path, stacked array) -> array on devices. Each stacked array is made, placed
      and dropped before the next.

  Raises:
    InputError: see `config_from_hf` and `assemble.gather`; also a tensor that two files
      hold, a stored type that is not a plain float, and files that are absent.
  """
  folder = pathlib.Path(folder)
  c = read_config(folder)
  with contextlib.ExitStack() as stack:
    where: dict[str, Any] = {}
    for path in _weight_files(folder):
      try:
        file = stack.enter_context(safetensors.safe_open(path, "numpy"))
      except (safetensors.SafetensorError, FileNotFoundError) as e:
        raise InputError(f"{path}: not a safetensors file ({e})") from e
      for name in _checked_names(file, path):
        if name in where:
          raise InputError(f"{path}: duplicate tensor {name}, also in another file")
        where[name] = file
    if c.tied_head and NAMES["head"] in where:
      _check_tied(folder, where)
      del where[NAMES["head"]]
    params = assemble.gather(
      c,
      names=NAMES,
      found={n: tuple(file.get_slice(n).get_shape()) for n, file in where.items()},
      read=lambda name: where[name].get_tensor(name),
      dtype=dtype,
      put=put,
      source=str(folder),
    )
  return c, params


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / "model.safetensors.index.json"
  if index.exists():
    try:
      files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, KeyError) as e:
      raise InputError(f"{index}: not an index with a weight_map") from e
    return [folder / name for name in sorted(files)]
  single = folder / "model.safetensors"
  if not single.exists():
    raise InputError(
      f"{str(folder)!r} has neither model.safetensors nor model.safetensors.index.json"
    )
  return [single]


def _checked_names(file: Any, path: pathlib.Path) -> Iterator[str]:
  """Names of the tensors that count; old files also hold the rotary wavelengths."""
  for name in file.keys():  # noqa: SIM118  (the handle is no mapping)
    stored = file.get_slice(name).get_dtype()
    if stored not in _DTYPES:
      raise InputError(f"{path}: {name} is stored as {stored}; allowed: {_DTYPES}")
    if not name.endswith(".rotary_emb.inv_freq"):
      yield name


def _check_tied(folder: pathlib.Path, where: Mapping[str, Any]) -> None:
  """Some exporters write a tied head a second time; it must be the same."""
  head, embed = NAMES["head"], NAMES["embed"]
  if embed in where and not np.array_equal(
    where[head].get_tensor(head), where[embed].get_tensor(embed)
  ):
    raise InputError(
      f"{folder}: {head} differs from {embed}, yet tie_word_embeddings is true"
    )


def save_hf(
  folder: str | os.PathLike, c: ModelConfig, params: dict, tokenizer: Any = None
) -> None:
  """Writes a folder that `load_hf` and transformers read: one safetensors file.

  Args:
    params: arrays that this process can fetch whole; all are held on the host at once.
    tokenizer: a `data.tokenizer.Tokenizer`, saved beside the weights.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tensors, flat = {}, trees.flatten(params)
  for path, parts in assemble.slices(c, NAMES).items():
    array = np.asarray(flat[path])
    for name, z, _ in parts:
      ours = array if z is None else array[z]
      tensors[name] = np.ascontiguousarray(assemble.to_stored(path, ours))
  fields = config_to_hf(c) | {"torch_dtype": str(flat["embed"].dtype)}
  if tokenizer is not None:
    fields |= {f"{k}_token_id": getattr(tokenizer, f"{k}_id") for k in ("bos", "eos")}
    tokenizer.save(folder)
  part = folder / ".model.safetensors.part"
  safetensors.numpy.save_file(tensors, part, metadata={"format": "pt"})
  os.replace(part, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(fields, indent=2))
