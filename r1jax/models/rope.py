"""Rotary position embeddings (RoPE, arXiv 2104.09864) and their context extensions.

Letters: B rows, L tokens, N heads, H rotary width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.config import Llama3Rope, ModelConfig, YarnRope


def rotary(c: ModelConfig, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each [B, L, 1, H/2] in float32."""
  angle = positions_BL.astype(jnp.float32)[..., None, None] * frequencies(c)
  gain = rotary_gain(c)
  both = jnp.concatenate([jnp.cos(angle) * gain, jnp.sin(angle) * gain], axis=-1)
  # Made once, as one array, which is not fused with what reads it: XLA's CPU backend
  # would make them again for every head of every layer.
  return tuple(jnp.split(jax.lax.optimization_barrier(both), 2, axis=-1))


def rotate(x_BLNH: jax.Array, cos_sin: tuple) -> jax.Array:
  """Rotates pairs (i, i + H/2), the layout of Hugging Face's Llama checkpoints."""
  cos, sin = cos_sin
  low, high = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
  return turned.astype(x_BLNH.dtype)


def frequencies(c: ModelConfig) -> np.ndarray:
  """Radians per position of each rotary pair, float32 [H/2]."""
  dim = c.head_dim if c.latent is None else c.latent.rope_dim
  plain = c.rope_base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  scaling = c.rope_scaling
  if isinstance(scaling, Llama3Rope):
    kept = _llama3_kept(plain, scaling)
  elif isinstance(scaling, YarnRope):
    kept = _yarn_kept(dim, c.rope_base, scaling)
  else:
    return plain.astype(np.float32)
  return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def _llama3_kept(plain: np.ndarray, s: Llama3Rope) -> np.ndarray:
  """Share of each frequency that is not slowed by the factor."""
  turns = s.original_length * plain / (2 * math.pi)
  return np.clip((turns - s.low_freq) / (s.high_freq - s.low_freq), 0.0, 1.0)


def _yarn_kept(dim: int, base: float, s: YarnRope) -> np.ndarray:
  """Share of each frequency that is not slowed, from a ramp over its number."""

  def number_of(turns: float) -> float:
    """Of the frequency that makes so many turns over the original length."""
    wavelength = s.original_length / (2 * math.pi * turns)
    return dim * math.log(wavelength) / (2 * math.log(base))

  low, high = number_of(s.beta_fast), number_of(s.beta_slow)
  if s.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  slope = max(high - low, 1e-3)  # a step where the borders meet
  return 1 - np.clip((np.arange(dim // 2) - low) / slope, 0.0, 1.0)


def _mscale(factor: float, mscale: float) -> float:
  return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_gain(c: ModelConfig) -> float:
  """What multiplies cos and sin."""
  s = c.rope_scaling
  if not isinstance(s, YarnRope):
    return 1.0
  if s.attention_factor is not None:
    return s.attention_factor
  if s.mscale and s.mscale_all_dim:
    return _mscale(s.factor, s.mscale) / _mscale(s.factor, s.mscale_all_dim)
  return _mscale(s.factor, 1.0)


def softmax_scale(c: ModelConfig) -> float:
  """What attention scores are multiplied by."""
  s = c.rope_scaling
  scale = c.head_dim**-0.5
  if c.latent is not None and isinstance(s, YarnRope):
    scale *= _mscale(s.factor, s.mscale_all_dim) ** 2
  return scale
