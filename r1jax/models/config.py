"""The shape of a decoder, as data."""

import dataclasses

from r1jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and constants of a Llama-style decoder.

  Attributes:
    depth: layers, Z.
    width: residual stream, D.
    heads, kv_heads: query heads N and key/value heads K; K divides N.
    head_dim: H, even.
    ffw: hidden width of the SwiGLU block, F.
    vocab: rows of the embedding, V (at least the tokenizer's).
    rope_base: base of the rotary wavelengths.
    norm_eps: added to the mean square in RMSNorm.
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
  norm_eps: float = 1e-5
  tied_head: bool = True
  max_length: int = 2048
  name: str = "decoder"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and (not isinstance(value, int) or value < 1):
        raise InputError(f"model.{field.name}={value!r} must be a positive integer")
    if self.heads % self.kv_heads:
      raise InputError(
        f"model.kv_heads={self.kv_heads} must divide model.heads={self.heads}"
      )
    if self.head_dim % 2:
      raise InputError(f"model.head_dim={self.head_dim} must be even (rotary pairs)")
