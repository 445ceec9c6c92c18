"""Arrays held in one byte a number: int8 with a scale for each channel, or float8.

Weights have a scale for each output channel, so that it multiplies what comes out of a
product; a cache has one for each of its columns. Products are of the dtype of the other
side, which what is held is converted to. The compiler for TPUs does so as it reads. On
CPU XLA makes wide copies, of weights once a rollout: nothing is saved there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import trees
from r1jax.models import parameters
from r1jax.types import ParamSpec

# What a rollout's weights and its cache may be held in; "" is the compute dtype.
WEIGHTS = ("", "int8")
CACHES = ("", "bfloat16", "float8_e4m3fn", "int8")
_MOST = 127  # of both signs


@struct.dataclass
class Quantized:
  """values * scale.

  Attributes:
    values: int8.
    scale: of as many axes, 1 long where the numbers along an axis share it.
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  @property
  def dtype(self) -> jnp.dtype:
    """What its numbers are once they are multiplied with their scale."""
    return self.scale.dtype


Held = jax.Array | Quantized


def quantize(x: jax.Array, axes: tuple[int, ...], dtype: Any = None) -> Quantized:
  """The nearest int8 multiples of max|x| / 127.

  Args:
    axes: along which numbers share a scale.
    dtype: of the scale, that of x unless told. The scale is rounded to it before the
      numbers are, so that its rounding is no error of theirs.
  """
  x32 = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x32), axis=axes, keepdims=True) / _MOST
  # Any scale would do for zeros.
  scale = jnp.where(scale > 0, scale, 1.0).astype(dtype or x.dtype)
  values = jnp.round(x32 / scale.astype(jnp.float32))
  return Quantized(jnp.clip(values, -_MOST, _MOST).astype(jnp.int8), scale)


def like(x: jax.Array, held: Held, axis: int) -> Held:
  """x as `held` is, where numbers along `axis` share a scale."""
  if isinstance(held, Quantized):
    return quantize(x, (axis,), held.dtype)
  if held.dtype == x.dtype:
    return x
  # float8_e4m3fn has no infinity: what is too large would become NaN.
  most = float(jnp.finfo(held.dtype).max)
  return jnp.clip(x, -most, most).astype(held.dtype)


def values(held: Held, dtype: Any) -> jax.Array:
  """In `dtype`, not yet multiplied with a scale."""
  return (held.values if isinstance(held, Quantized) else held).astype(dtype)


def params_in(kind: str, params: dict, specs: dict) -> dict:
  """Parameters with their matrices held as one of WEIGHTS.

  Norms, biases, routers and adapters stay, and the map from the latent of attention,
  which decoding splits before it multiplies. Scales have the parameters' dtype.
  """
  if not kind:
    return params
  flat = trees.flatten(specs)

  def one(path: str, w: jax.Array) -> Held:
    axes = _shared_axes(path, flat[path])
    return quantize(w, axes) if axes else w

  return trees.map_with_path(one, params)


def specs_in(kind: str, specs: dict) -> dict:
  """The ParamSpecs of what `params_in` makes."""
  if not kind:
    return specs

  def one(path: str, spec: ParamSpec) -> ParamSpec | Quantized:
    axes = _shared_axes(path, spec)
    if not axes:
      return spec
    kept = [i not in axes for i in range(len(spec.shape))]
    scale = dataclasses.replace(
      spec,
      shape=tuple(n if keep else 1 for n, keep in zip(spec.shape, kept, strict=True)),
      axes=tuple(a if keep else None for a, keep in zip(spec.axes, kept, strict=True)),
    )
    return Quantized(spec, scale)

  return trees.map_with_path(one, specs)


def _shared_axes(path: str, spec: ParamSpec) -> tuple[int, ...]:
  """The input axes of a matrix that is to be quantized; of others none.

  Of the embedding it is the width: a token has a scale, looked up or predicted.
  """
  if path == "embed":
    return (1,)
  if path.endswith(("router", "kv_up")):
    return ()
  first = parameters.num_stacked(spec)
  return tuple(range(first, first + parameters.num_inputs(path)))
