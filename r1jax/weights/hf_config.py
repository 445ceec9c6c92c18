"""config.json of Hugging Face folders, in and out.

Every field acts, or is known not to matter, or is refused by name: a model that loads
is the model that was meant. `hf_families` has the fields.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from r1jax.errors import InputError, one_of
from r1jax.models.config import Experts, Latent, Llama3Rope, ModelConfig, YarnRope
from r1jax.weights import hf_families

_REQUIRED = object()


class _Fields:
  """An object of config.json, read field by field; what is left over is refused."""

  def __init__(self, fields: Any, where: str):
    if not isinstance(fields, Mapping):
      raise InputError(f"{where}: {fields!r} is not an object")
    self._fields, self._where, self._understood = dict(fields), where, set()

  def read(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """The value of a field, or `default` where it is absent or null."""
    self._understood.add(name)
    value = self._fields.get(name)
    if value is None:
      if default is _REQUIRED:
        raise InputError(f"{self._where}: no {name}")
      return default
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:
      raise InputError(f"{self._where}: {name}={value!r} must be {kind.__name__}")
    return value

  def attributes(
    self, record: type, names: Mapping[str, str], defaults: Mapping[str, Any]
  ) -> dict[str, Any]:
    """{attribute of the dataclass `record`: value}."""
    kinds = _kinds(record)
    return {
      ours: self.read(name, kinds[ours], defaults.get(name, _REQUIRED))
      for name, ours in names.items()
    }

  def only(self, name: str, allowed: Any) -> None:
    """Refuses a field that is there with another value; null is as good as nothing."""
    self._understood.add(name)
    value = self._fields.get(name, allowed)
    if value != allowed and (value is not None or allowed):
      raise InputError(
        f"{self._where}: {name}={value!r} is not supported, only {allowed!r}"
      )

  def choice(self, name: str, allowed: Iterable[str], default: Any = _REQUIRED) -> str:
    value = self.read(name, str, default)
    return one_of(value, allowed, key=f"{self._where}: {name}")

  def rename(self, spelling: str, name: str) -> None:
    """Takes one spelling of a field for another; both must say the same."""
    if spelling in self._fields:
      value = self._fields.pop(spelling)
      other = self._fields.setdefault(name, value)
      if value != other:
        raise InputError(
          f"{self._where}: {spelling}={value!r} and {name}={other!r} are two "
          "spellings of one field and must agree"
        )

  def need(self, names: Iterable[str]) -> None:
    for name in names:
      if name not in self._fields:
        raise InputError(f"{self._where}: no {name}")

  def skip(self, names: Iterable[str]) -> None:
    self._understood.update(names)

  def finish(self) -> None:
    """Refuses what is left over."""
    for name in sorted(self._fields.keys() - self._understood):
      raise InputError(
        f"{self._where}: field {name!r} (={self._fields[name]!r}) is not understood"
      )


def _kinds(record: type) -> dict[str, type]:
  """{attribute: type}; a number that may be None is a float."""
  return {
    field.name: field.type if isinstance(field.type, type) else float
    for field in dataclasses.fields(record)
  }


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
  """The shape of a model from the object in its config.json.

  Raises:
    InputError: an architecture, field or value that this decoder does not compute, or
      a size that is absent; the message names it.
  """
  f = _Fields(fields, "config.json")
  kind = f.choice("model_type", hf_families.FAMILIES)
  family = hf_families.FAMILIES[kind]
  for name in f.read("architectures", list, []):
    one_of(name, [family.architecture], key="config.json: architectures")
  for spelling, name in family.renamed.items():
    f.rename(spelling, name)
  f.need(family.nullable)
  fixed = hf_families.FIXED | hf_families.FOREIGN_FIXED | family.fixed
  for name, value in fixed.items():
    f.only(name, value)
  defaults = hf_families.DEFAULTS | family.defaults
  model = f.attributes(ModelConfig, hf_families.MODEL, defaults) | family.implied
  windows = set(f.read("layer_types", list, [])) - {"full_attention"}
  if windows:
    raise InputError(
      f"config.json: layer_types has {sorted(windows)}; only full_attention is computed"
    )
  model |= _rope(f, model["max_length"])
  # Absent in files older than the field, whatever transformers would put in.
  model["mtp_depth"] = f.read("num_nextn_predict_layers", int, 0) if family.mtp else 0
  if family.experts:
    model["experts"] = _experts(f, family, defaults)
  heads = model["heads"]
  if family.latent:
    latent = Latent(**f.attributes(Latent, hf_families.LATENT, {"q_lora_rank": 0}))
    width = latent.nope_dim + latent.rope_dim
    model |= {"latent": latent, "kv_heads": heads, "head_dim": width}
    # transformers writes them, and computes them anew when it reads.
    f.only("num_key_value_heads", heads)
    f.only("head_dim", latent.rope_dim)
    f.only("qk_head_dim", width)
  else:
    model["kv_heads"] = f.read("num_key_value_heads", int, heads)
    head_dim = f.read("head_dim", int, family.head_dim)
    if head_dim is None:
      head_dim = _per_head(model["width"], heads)
    model["head_dim"] = head_dim
  name = f.read("_name_or_path", str, "") or kind
  f.skip(hf_families.HARMLESS | family.harmless)
  f.finish()
  return ModelConfig(**model, name=name)


def _per_head(width: int, heads: int) -> int:
  if width % heads:
    raise InputError(
      f"config.json: hidden_size={width} is not a multiple of num_attention_heads="
      f"{heads}, and there is no head_dim"
    )
  return width // heads


def _experts(
  f: _Fields, family: hf_families.Family, defaults: Mapping[str, Any]
) -> Experts:
  experts = f.attributes(Experts, family.experts, defaults) | family.implied_experts
  if family.topk_methods:
    methods = family.topk_methods
    method = f.choice("topk_method", methods, default=next(iter(methods)))
    if methods[method]:
      experts |= f.attributes(Experts, hf_families.GROUPS, {})
    f.skip(hf_families.GROUPS)  # there, often, even where they do not act
  return Experts(**experts)


def _rope(f: _Fields, max_length: int) -> dict[str, Any]:
  """Base and scaling, from `rope_theta` beside `rope_scaling`, or `rope_parameters`.

  The second is how transformers 5 writes both; where a file has both, they must agree.
  """
  bases, scalings = [f.read("rope_theta", float, None)], []
  for field in ("rope_scaling", "rope_parameters"):
    nested = f.read(field, dict, {})
    if nested:
      base, scaling = _scaling(_Fields(nested, f"config.json: {field}"), max_length)
      bases.append(base)
      scalings.append(scaling)
  bases = {base for base in bases if base is not None} or {10_000.0}
  if len(bases) > 1 or len(set(scalings)) > 1:
    raise InputError(
      "config.json: rope_theta, rope_scaling and rope_parameters must agree; got bases "
      f"{sorted(bases)} and {scalings}"
    )
  return {"rope_base": bases.pop(), "rope_scaling": scalings[0] if scalings else None}


def _scaling(
  f: _Fields, max_length: int
) -> tuple[float | None, Llama3Rope | YarnRope | None]:
  """(base where it is given, scaling)."""
  f.rename("type", "rope_type")
  base = f.read("rope_theta", float, None)
  kind = f.choice("rope_type", ("default", *hf_families.ROPES), default="default")
  scaling = None
  if kind != "default":
    record, names = hf_families.ROPES[kind]
    defaults = hf_families.ROPE_DEFAULTS[kind]
    # As in transformers: where the first length is not told, it is the model's own.
    defaults = defaults | {"original_max_position_embeddings": max_length}
    scaling = record(**f.attributes(record, names, defaults))
  f.finish()
  return base, scaling


def config_to_hf(c: ModelConfig) -> dict[str, Any]:
  """The object that `config_from_hf` reads back as `c`.

  Raises:
    InputError: a shape that no architecture has.
  """
  kind = _model_type(c)
  family = hf_families.FAMILIES[kind]
  if family.even_split and c.width % c.heads:
    raise InputError(
      f"model.width={c.width} cannot be exported: transformers reads a {kind} only "
      f"where model.heads={c.heads} divides it"
    )
  fields = {
    "architectures": [family.architecture],
    "_name_or_path": c.name,
    "model_type": kind,
    **_written(c, hf_families.MODEL),
    "num_key_value_heads": c.kv_heads,
    "rope_theta": float(c.rope_base),
    "rope_scaling": _written_scaling(c),
    **hf_families.FIXED,
    **family.fixed,
  }
  if c.latent is None:
    fields["head_dim"] = c.head_dim
  else:
    fields |= _written(c.latent, hf_families.LATENT)
    fields["q_lora_rank"] = c.latent.q_rank if c.latent.q_rank else None
  if c.experts is not None:
    fields |= _written(c.experts, family.experts)
  if family.topk_methods:
    fields |= _written(c.experts, hf_families.GROUPS)
    fields["topk_method"] = next(
      method
      for method, grouped in family.topk_methods.items()
      if grouped or c.experts.groups == 1
    )
  if family.mtp:
    fields["num_nextn_predict_layers"] = c.mtp_depth
  for key, (ours, theirs) in _differences(c, config_from_hf(fields)):
    raise InputError(
      f"model.{key}={ours!r} cannot be exported: in a {kind}, the nearest architecture "
      f"to this shape, it is {theirs!r}"
    )
  return fields


def _model_type(c: ModelConfig) -> str:
  if c.latent is not None:
    if c.experts is None:
      raise InputError(
        "model.latent without model.experts cannot be exported: there is no "
        "architecture with the one and without the other"
      )
    return "deepseek_v3" if c.experts.scores == "sigmoid" else "deepseek_v2"
  if c.experts is not None:
    return "qwen3_moe"
  if c.qk_norm:
    return "qwen3"
  return "qwen2" if c.qkv_bias else "llama"


def _written(record: Any, names: Mapping[str, str]) -> dict[str, Any]:
  """{field: value}; numbers that may have a fraction are written with one."""
  kinds = _kinds(type(record))
  values = {name: getattr(record, ours) for name, ours in names.items()}
  return {
    name: float(value) if kinds[names[name]] is float else value
    for name, value in values.items()
    if value is not None
  }


def _written_scaling(c: ModelConfig) -> dict[str, Any] | None:
  """In the spelling that transformers 4 reads too."""
  for kind, (record, names) in hf_families.ROPES.items():
    if isinstance(c.rope_scaling, record):
      return {"rope_type": kind, **_written(c.rope_scaling, names)}
  return None


def _differences(
  a: Any, b: Any, prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
  """(dotted attribute, its two values) of two dataclasses."""
  for field in dataclasses.fields(a):
    key, pair = prefix + field.name, (getattr(a, field.name), getattr(b, field.name))
    if all(map(dataclasses.is_dataclass, pair)) and type(pair[0]) is type(pair[1]):
      yield from _differences(*pair, f"{key}.")
    elif pair[0] != pair[1]:
      yield key, pair


def read_fields(folder: str | os.PathLike) -> dict[str, Any]:
  """The object in the config.json of a folder."""
  path = pathlib.Path(folder) / "config.json"
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as e:
    raise InputError(f"{path} does not exist; a model folder has one") from e
  except json.JSONDecodeError as e:
    raise InputError(f"{path}: not JSON ({e})") from e
  if not isinstance(fields, dict):
    raise InputError(f"{path}: not an object")
  return fields


def read_config(folder: str | os.PathLike) -> ModelConfig:
  """The shape of the model in a folder, without its weights."""
  fields = read_fields(folder)
  fields.pop("quantization_config", None)  # of the weights, and read with them
  try:
    return config_from_hf(fields)
  except InputError as e:
    raise InputError(f"{folder}: {e}") from e
