"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685): a tree of their own.

Letters: Z layers of a stack, E experts.

An adapter has, under the path of each matrix that it changes, `a` and `b`, such as
`layers/attn/q/a`: the layer computes with base + alpha / rank * a b. `a` is drawn and
`b` is 0, so that a fresh adapter changes nothing. Experts have an a and a b each.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import trees
from r1jax.errors import InputError
from r1jax.models import parameters
from r1jax.models.config import ModelConfig
from r1jax.models.layers import Adapted
from r1jax.types import ParamSpec

# Axes along which matrices are stacked.
_STACKED = ("layer", "expert")


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which layers are adapted, and how.

  Attributes:
    rank: of the updates, at most that of every matrix adapted.
    alpha: the updates are multiplied by alpha / rank, so that the best learning rate
      hardly depends on the rank. Rank-stabilised LoRA (arXiv 2312.03732) has the
      rank's root in its place: multiply alpha by the root for that.
    paths: full-match regular expressions over the paths of `linear_layers`.
  """

  rank: int
  alpha: float
  paths: tuple[str, ...]

  def __post_init__(self):
    if not isinstance(self.rank, int) or self.rank < 1:
      raise InputError(
        f"config.lora.rank={self.rank!r}: must be 1 or more, or 0 to train all "
        "parameters"
      )
    if not self.alpha > 0:
      raise InputError(f"config.lora.alpha={self.alpha!r}: must be above 0")
    if not self.paths:
      raise InputError("config.lora.paths=(): name one regular expression at least")
    for pattern in self.paths:
      try:
        re.compile(pattern)
      except re.error as e:
        raise InputError(f"config.lora.paths: {pattern!r}: {e}") from e

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def of_section(section: Mapping[str, Any]) -> Lora | None:
  """What a config's section says; None with rank 0, and then nothing else is read."""
  if section["rank"] == 0:
    return None
  return Lora(**{**section, "paths": tuple(section["paths"])})


def linear_layers(c: ModelConfig) -> dict[str, ParamSpec]:
  """{path: spec} of all matrices that may be adapted: those of the stacks' layers."""
  specs = trees.flatten(parameters.param_specs(c))
  return {
    path: spec
    for path, spec in specs.items()
    if spec.axes[0] == "layer" and spec.fan_in
  }


def adapter_specs(c: ModelConfig, lora: Lora) -> dict:
  """Nested dict of ParamSpec.

  Departs: the paper draws `a` from a normal distribution of unnamed size; here its
  variance is that of the authors' code, 1 / (3 * inputs), from which learning rates
  for adapters are known.

  Raises:
    InputError: a pattern that matches no linear layer, a rank above that of a matrix.
  """
  linear = linear_layers(c)
  for pattern in lora.paths:
    if not any(re.fullmatch(pattern, path) for path in linear):
      others = [
        path
        for path in trees.flatten(parameters.param_specs(c))
        if re.fullmatch(pattern, path)
      ]
      what = "matches no parameter"
      if others:
        what = f"matches {', '.join(others)}, and none of these is a linear layer"
      raise InputError(
        f"config.lora.paths: {pattern!r} {what}; there are: {', '.join(linear)}"
      )
  flat = {}
  for path, spec in linear.items():
    if any(re.fullmatch(pattern, path) for pattern in lora.paths):
      flat[f"{path}/a"], flat[f"{path}/b"] = _pair(path, spec, lora.rank)
  return trees.unflatten(flat)


def _pair(path: str, spec: ParamSpec, rank: int) -> tuple[ParamSpec, ParamSpec]:
  stacked = parameters.num_stacked(spec)
  split = stacked + parameters.num_inputs(path)
  inner, outer = math.prod(spec.shape[stacked:split]), math.prod(spec.shape[split:])
  if rank > min(inner, outer):
    raise InputError(
      f"config.lora.rank={rank}: {path} is a matrix of {inner} by {outer}, whose rank "
      f"is at most {min(inner, outer)}; lower it, or leave that layer out of "
      "config.lora.paths"
    )
  return (
    ParamSpec(
      (*spec.shape[:split], rank), (*spec.axes[:split], None), fan_in=3 * inner
    ),
    ParamSpec(
      (*spec.shape[:stacked], rank, *spec.shape[split:]),
      (*spec.axes[:stacked], None, *spec.axes[split:]),
      fill=0.0,
    ),
  )


def attach(params: dict, adapter: dict, lora: Lora) -> dict:
  """The tree that the model computes with: `Adapted` in place of adapted matrices.

  No array is touched: the leaves may as well be shapes or shardings.
  """
  return _changed(params, adapter, lambda w, a, b: Adapted(w, a, b, lora.scale))


def merge(params: dict, adapter: dict, lora: Lora) -> dict:
  """Parameters with the updates added, in float32, one layer after another.

  The sums are rounded to the parameters' dtype.
  """
  return _add(params, adapter, lora.scale)


def unmerge(params: dict, adapter: dict, lora: Lora) -> dict:
  """Undoes `merge`, but for the rounding of its sums."""
  return _add(params, adapter, -lora.scale)


def _add(params: dict, adapter: dict, scale: float) -> dict:
  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)

  def change(w, a, b):
    has_experts = a.ndim + b.ndim - 2 > w.ndim + 1

    def layer(z, w):
      own_a, own_b = a[z].astype(jnp.float32), b[z].astype(jnp.float32)
      update = (jax.vmap(product) if has_experts else product)(own_a, own_b)
      total = w[z].astype(jnp.float32) + scale * update
      return w.at[z].set(total.astype(w.dtype))

    # A loop may write into its input, where a map would make all of it anew.
    return jax.lax.fori_loop(0, w.shape[0], layer, w)

  return _changed(params, adapter, change)


def _changed(params: dict, adapter: dict, change: Callable) -> dict:
  """Parameters with `change(w, a, b)` in place of each adapted matrix w."""
  flat, low_rank = trees.flatten(params), trees.flatten(adapter)
  for path in dict.fromkeys(path.rpartition("/")[0] for path in low_rank):
    flat[path] = change(flat[path], low_rank[f"{path}/a"], low_rank[f"{path}/b"])
  return trees.unflatten(flat)
