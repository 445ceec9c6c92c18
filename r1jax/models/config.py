"""The shape of a decoder, as data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from r1jax.errors import InputError, one_of


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
  """Rotary scaling of Llama 3.1 and later (type "llama3" of Hugging Face).

  Wavelengths above original_length / low_freq are stretched by `factor`, those below
  original_length / high_freq stay, and between the two the change is gradual.
  """

  factor: float
  original_length: int
  low_freq: float = 1.0
  high_freq: float = 4.0

  def __post_init__(self):
    _stretches(self)
    if not 0 < self.low_freq < self.high_freq:
      raise InputError(
        f"model.rope_scaling: low_freq={self.low_freq} must be above 0 and below "
        f"high_freq={self.high_freq}"
      )


@dataclasses.dataclass(frozen=True)
class YarnRope:
  """Rotary scaling by YaRN (arXiv 2309.00071), with DeepSeek's two scales.

  Attributes:
    factor, original_length: context is stretched from the second by the first.
    beta_fast, beta_slow: turns over the original length above which a wavelength
      stays, and below which it is stretched in full.
    mscale, mscale_all_dim: 0.1 * mscale * ln(factor) + 1, or 1 where mscale is 0; the
      quotient of the two multiplies cos and sin, and the square of the second the
      softmax scale of latent attention.
    attention_factor: what multiplies cos and sin; None derives it: from the two
      scales where both are given, else as with mscale 1 and mscale_all_dim 0.
    truncate: the two borders are rounded outward to whole dimensions.
  """

  factor: float
  original_length: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  attention_factor: float | None = None
  truncate: bool = True

  def __post_init__(self):
    _stretches(self)
    if not 0 < self.beta_slow < self.beta_fast:
      raise InputError(
        f"model.rope_scaling: beta_slow={self.beta_slow} must be above 0 and below "
        f"beta_fast={self.beta_fast}"
      )


@dataclasses.dataclass(frozen=True)
class Latent:
  """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

  Attributes:
    q_rank: width of the queries' latent; 0 projects them in one step.
    kv_rank: width of the latent that keys and values are made of, and that is cached.
    nope_dim: of each head's key and query, the part without position.
    rope_dim: the rotary part, of which all heads share one key; even.
    value_dim: of each head.
  """

  q_rank: int
  kv_rank: int
  nope_dim: int
  rope_dim: int
  value_dim: int


@dataclasses.dataclass(frozen=True)
class Experts:
  """A mixture of experts in place of the SwiGLU block, in all but the first layers.

  Attributes:
    count: routed experts, E.
    per_token: of them, those that a token goes through.
    ffw: hidden width of one expert.
    shared: experts that every token goes through, held as one block of shared * ffw.
    first_dense: layers in front that have a plain SwiGLU block of `ModelConfig.ffw`.
    scores: "softmax" over the experts, or a "sigmoid" of each.
    bias: a number of each expert is added to its score where experts are chosen, and
      not where their outputs are weighed (auxiliary-loss-free balancing).
    groups, kept_groups: experts lie in `groups` of equal size, of which a token's are
      chosen from the best `kept_groups`.
    group_score: of a group: the "max" of its scores, or the sum of the "top2".
    normalise: the gates of a token are divided by their sum.
    scale: multiplies the gates.
  """

  count: int
  per_token: int
  ffw: int
  shared: int = 0
  first_dense: int = 0
  scores: str = "softmax"
  bias: bool = False
  groups: int = 1
  kept_groups: int = 1
  group_score: str = "max"
  normalise: bool = True
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and constants of a decoder of the Llama, Qwen and DeepSeek families.

  Attributes:
    depth: layers, Z.
    width: residual stream, D.
    heads, kv_heads: query heads N and key/value heads K; K divides N, and with latent
      attention equals it.
    head_dim: H, even; with latent attention nope_dim + rope_dim, of which only the
      second is.
    ffw: hidden width of the SwiGLU block, F.
    vocab: rows of the embedding, V (at least the tokenizer's).
    rope_base: base of the rotary wavelengths.
    rope_scaling: how wavelengths are stretched for contexts beyond the first training.
    norm_eps: added to the mean square in RMSNorm.
    qkv_bias: queries, keys and values have a bias (Qwen2).
    qk_norm: queries and keys go through an RMSNorm of their own (Qwen3).
    latent: latent attention; None is grouped-query attention.
    experts: None is a SwiGLU block in every layer.
    mtp_depth: modules that predict one token further each (arXiv 2412.19437, 2.2).
    tied_head: the output projection is the embedding, transposed.
    max_length: longest sequence in tokens that the positions were trained for.
    name: for messages and exports.
  """

  depth: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  ffw: int
  vocab: int
  rope_base: float = 10_000.0
  rope_scaling: Llama3Rope | YarnRope | None = None
  norm_eps: float = 1e-5
  qkv_bias: bool = False
  qk_norm: bool = False
  latent: Latent | None = None
  experts: Experts | None = None
  mtp_depth: int = 0
  tied_head: bool = True
  max_length: int = 2048
  name: str = "decoder"

  def __post_init__(self):
    _positive(self, "model", zero=("mtp_depth",))
    if self.heads % self.kv_heads:
      raise InputError(
        f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}"
      )
    if self.head_dim % 2 and self.latent is None:
      raise InputError(f"model.head_dim={self.head_dim} must be even (rotary pairs)")
    if self.mtp_depth > 1:
      raise InputError(f"model.mtp_depth={self.mtp_depth}: only 0 and 1 are computed")
    if self.latent is not None:
      self._check_latent(self.latent)
    if self.experts is not None:
      self._check_experts(self.experts)

  def _check_latent(self, latent: Latent) -> None:
    _positive(latent, "model.latent", zero=("q_rank",))
    if latent.rope_dim % 2:
      raise InputError(f"model.latent.rope_dim={latent.rope_dim} must be even")
    if self.head_dim != latent.nope_dim + latent.rope_dim:
      raise InputError(
        f"model.head_dim={self.head_dim} must be model.latent.nope_dim + rope_dim = "
        f"{latent.nope_dim + latent.rope_dim}"
      )
    if self.kv_heads != self.heads or self.qkv_bias or self.qk_norm:
      raise InputError(
        "model.latent goes with kv_heads equal to heads, and without qkv_bias or "
        f"qk_norm; got kv_heads={self.kv_heads}, heads={self.heads}, "
        f"qkv_bias={self.qkv_bias}, qk_norm={self.qk_norm}"
      )

  def _check_experts(self, e: Experts) -> None:
    _positive(e, "model.experts", zero=("shared", "first_dense"))
    one_of(e.scores, ("softmax", "sigmoid"), key="model.experts.scores")
    one_of(e.group_score, ("max", "top2"), key="model.experts.group_score")
    if e.first_dense >= self.depth:
      raise InputError(
        f"model.experts.first_dense={e.first_dense} leaves none of the "
        f"model.depth={self.depth} layers with experts"
      )
    size = e.count // e.groups
    if e.count % e.groups or e.kept_groups > e.groups or size < 2 <= e.groups:
      raise InputError(
        f"model.experts: count={e.count} must split into groups={e.groups} of two or "
        f"more, and kept_groups={e.kept_groups} be at most that"
      )
    if e.per_token > e.kept_groups * size:
      raise InputError(
        f"model.experts.per_token={e.per_token} is more than the "
        f"{e.kept_groups * size} experts that can be chosen from"
      )

  @property
  def dense_depth(self) -> int:
    """Layers with a plain SwiGLU block that lie in front of those with experts."""
    return self.experts.first_dense if self.experts is not None else 0


_ROPES = {"llama3": Llama3Rope, "yarn": YarnRope}


def changed(c: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
  """`c` with other fields; those that are records are given as mappings.

  A record that `c` has is changed, one that it has not is made: `latent`, `experts`,
  and `rope_scaling` with its `kind`, "llama3" or "yarn".

  Raises:
    InputError: an unknown field, or one that a new record needs.
  """
  new = {}
  for key, value in fields.items():
    one_of(key, [f.name for f in dataclasses.fields(c)], key="config.model.shape")
    if isinstance(value, Mapping):
      value = _record(key, getattr(c, key), value)
    new[key] = value
  return dataclasses.replace(c, **new)


def _record(key: str, old: Any, fields: Mapping[str, Any]) -> Any:
  where, fields = f"config.model.shape.{key}", dict(fields)
  kinds = {"latent": Latent, "experts": Experts}
  if key == "rope_scaling":
    given = fields.pop("kind", None)
    if old is None or given is not None:
      kind = _ROPES[one_of(given or "", _ROPES, key=f"{where}.kind")]
    else:
      kind = type(old)
  elif key in kinds:
    kind = kinds[key]
  else:
    raise InputError(f"{where}={fields!r}: is one value, not a section")
  if isinstance(old, kind):
    fields = dataclasses.asdict(old) | fields
  known = {field.name: field for field in dataclasses.fields(kind)}
  for name in fields:
    one_of(name, known, key=where)
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise InputError(f"{where}.{name} is missing")
  return kind(**fields)


def _stretches(rope: Llama3Rope | YarnRope) -> None:
  _positive(rope, "model.rope_scaling", zero=())
  if not rope.factor >= 1:
    raise InputError(f"model.rope_scaling.factor={rope.factor}: must be 1 or more")


def _positive(record, where: str, *, zero: tuple[str, ...]) -> None:
  """Refuses integer fields below 1, or below 0 for those named in `zero`."""
  for field in dataclasses.fields(record):
    value, least = getattr(record, field.name), 0 if field.name in zero else 1
    if field.type is int and (not isinstance(value, int) or value < least):
      kind = "a positive integer" if least else "an integer, 0 or more"
      raise InputError(f"{where}.{field.name}={value!r} must be {kind}")
