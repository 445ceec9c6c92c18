"""Parameters described before they exist, and made.

Letters: Z depth of a stack, D width, N query heads, K kv heads, H head width, F ffw
width, E experts, V vocabulary.

Layers of a kind are stacked on a leading axis: `layers`, before them `dense` where the
first layers have no experts, and `mtp` for the module that predicts one token further.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import prng, trees
from r1jax.models.config import ModelConfig
from r1jax.types import ParamSpec

# Input axes of a matrix, by the last word of its path. Norms and biases have none.
_INPUTS = {
  "o": 2,  # heads and their width
  **dict.fromkeys(("q", "k", "v", "q_down", "q_up", "kv_down", "kv_up"), 1),
  **dict.fromkeys(("gate", "up", "down", "router", "proj", "head"), 1),
}


def num_inputs(path: str) -> int:
  """How many axes of a matrix, behind those of layers and experts, are its inputs."""
  return _INPUTS.get(path.rpartition("/")[2], 0)


def num_stacked(spec: ParamSpec) -> int:
  """How many leading axes number layers and experts."""
  return sum(axis in ("layer", "expert") for axis in spec.axes)


# What `fused` makes: module, name, of which matrices, and their axis.
_FUSED = (
  ("attn", "qkv", ("q", "k", "v"), -2),
  ("attn", "qkv_bias", ("q_bias", "k_bias", "v_bias"), -2),
  ("mlp", "gate_up", ("gate", "up"), -1),
)
# Names of the stacks, in the order of computation.
STACKS = ("dense", "layers", "mtp")


def stacks(c: ModelConfig) -> dict[str, tuple[int, int]]:
  """{name: (first layer, layers)} of the stacks, in the order of computation."""
  sizes = {
    "dense": (0, c.dense_depth),
    "layers": (c.dense_depth, c.depth - c.dense_depth),
    "mtp": (c.depth, c.mtp_depth),
  }
  return {name: (first, size) for name, (first, size) in sizes.items() if size}


def param_specs(c: ModelConfig) -> dict:
  """Nested dict of ParamSpec."""
  d = c.width
  specs = {
    "embed": ParamSpec((c.vocab, d), ("vocab", "embed"), fan_in=d),
    **{name: _layers(c, name, size) for name, (_, size) in stacks(c).items()},
    "final_norm": ParamSpec((d,), (None,)),
  }
  if not c.tied_head:
    specs["head"] = ParamSpec((d, c.vocab), ("embed", "vocab"), fan_in=d)
  return specs


def _layers(c: ModelConfig, name: str, z: int) -> dict:
  norm = ParamSpec((z, c.width), ("layer", None))
  layer = {
    "attn_norm": norm,
    "attn": _grouped_query(c, z) if c.latent is None else _latent(c, z),
    "mlp_norm": norm,
  }
  if c.experts is None or name == "dense":
    layer["mlp"] = _swiglu(c, z, c.ffw)
  else:
    layer["moe"] = _experts(c, z)
  if name == "mtp":
    proj = ParamSpec(
      (z, 2 * c.width, c.width), ("layer", None, "embed"), fan_in=2 * c.width
    )
    layer |= {"embed_norm": norm, "hidden_norm": norm, "proj": proj, "norm": norm}
  return layer


def _grouped_query(c: ModelConfig, z: int) -> dict:
  d, h = c.width, c.head_dim
  q = ParamSpec((z, d, c.heads, h), ("layer", "embed", "heads", None), fan_in=d)
  kv = ParamSpec((z, d, c.kv_heads, h), ("layer", "embed", "kv_heads", None), fan_in=d)
  attn = {"q": q, "k": kv, "v": kv, "o": _output(c, z, h)}
  if c.qkv_bias:
    kv_bias = ParamSpec((z, c.kv_heads, h), ("layer", "kv_heads", None), fill=0.0)
    attn["q_bias"] = ParamSpec((z, c.heads, h), ("layer", "heads", None), fill=0.0)
    attn |= {"k_bias": kv_bias, "v_bias": kv_bias}
  if c.qk_norm:
    attn["q_norm"] = attn["k_norm"] = ParamSpec((z, h), ("layer", None))
  return attn


def _latent(c: ModelConfig, z: int) -> dict:
  d, m = c.width, c.latent
  up_axes = ("layer", None, "heads", None)
  attn = {
    # The rotary key that all heads share stands behind the latent.
    "kv_down": ParamSpec(
      (z, d, m.kv_rank + m.rope_dim), ("layer", "embed", None), fan_in=d
    ),
    "kv_norm": ParamSpec((z, m.kv_rank), ("layer", None)),
    "kv_up": ParamSpec(
      (z, m.kv_rank, c.heads, m.nope_dim + m.value_dim), up_axes, fan_in=m.kv_rank
    ),
    "o": _output(c, z, m.value_dim),
  }
  if not m.q_rank:
    q_axes = ("layer", "embed", "heads", None)
    attn["q"] = ParamSpec((z, d, c.heads, c.head_dim), q_axes, fan_in=d)
    return attn
  return attn | {
    "q_down": ParamSpec((z, d, m.q_rank), ("layer", "embed", None), fan_in=d),
    "q_norm": ParamSpec((z, m.q_rank), ("layer", None)),
    "q_up": ParamSpec((z, m.q_rank, c.heads, c.head_dim), up_axes, fan_in=m.q_rank),
  }


def _output(c: ModelConfig, z: int, head_dim: int) -> ParamSpec:
  return ParamSpec(
    (z, c.heads, head_dim, c.width),
    ("layer", "heads", None, "embed"),
    fan_in=c.heads * head_dim * 2 * c.depth,  # keeps the residual's variance over depth
  )


def _swiglu(c: ModelConfig, z: int, f: int) -> dict:
  d = c.width
  up = ParamSpec((z, d, f), ("layer", "embed", "ffw"), fan_in=d)
  down = ParamSpec((z, f, d), ("layer", "ffw", "embed"), fan_in=f * 2 * c.depth)
  return {"gate": up, "up": up, "down": down}


def _experts(c: ModelConfig, z: int) -> dict:
  d, e, f = c.width, c.experts, c.experts.ffw
  up = ParamSpec(
    (z, e.count, d, f), ("layer", "expert", "expert_embed", "ffw"), fan_in=d
  )
  down = ParamSpec(
    (z, e.count, f, d),
    ("layer", "expert", "ffw", "expert_embed"),
    fan_in=f * 2 * c.depth,
  )
  moe = {
    "router": ParamSpec((z, d, e.count), ("layer", "embed", None), fan_in=d),
    "experts": {"gate": up, "up": up, "down": down},
  }
  if e.bias:
    moe["bias"] = ParamSpec((z, e.count), ("layer", None), fill=0.0)
  if e.shared:
    moe["shared"] = _swiglu(c, z, e.shared * f)
  return moe


def unstacked(tree: dict) -> dict:
  """A tree with each stack as {"0": its first layer, "1": ...}.

  Programs that go through the layers many times read arrays of one layer each faster:
  a slice of stacked ones is copied.

  Args:
    tree: of arrays, or of ParamSpecs.
  """

  def layers(stack: dict) -> dict:
    leaves = jax.tree.leaves(stack, is_leaf=_is_spec)
    return {str(z): layer_of(stack, z) for z in range(leaves[0].shape[0])}

  return {name: layers(x) if name in STACKS else x for name, x in tree.items()}


def layer_of(stack: dict, z: int) -> dict:
  """The layer z of a stack, be it stacked or `unstacked`."""
  if str(z) in stack:
    return stack[str(z)]

  def take(leaf: Any) -> Any:
    if isinstance(leaf, ParamSpec):
      return dataclasses.replace(leaf, shape=leaf.shape[1:], axes=leaf.axes[1:])
    return leaf[z]

  return jax.tree.map(take, stack, is_leaf=_is_spec)


def fused(tree: dict) -> dict:
  """An `unstacked` tree in which matrices that read the same are one.

  On a GPU few products of many outputs are faster than many of few. Queries, keys and
  values of attention stand behind one another on the axis of heads, gate and up on that
  of the ffw; both axes must lie on every device whole.

  Args:
    tree: of arrays, or of ParamSpecs.
  """

  def layer(parts: dict) -> dict:
    made = dict(parts)
    for module, name, of, axis in _FUSED:
      own = made.get(module, {})
      if all(part in own for part in of):
        rest = {part: leaf for part, leaf in own.items() if part not in of}
        joined = jax.tree.map(
          lambda *leaves, axis=axis: _joined(leaves, axis),
          *(own[part] for part in of),
          is_leaf=_is_spec,
        )
        made[module] = {**rest, name: joined}
    return made

  def layers(stack: dict) -> dict:
    return {z: layer(parts) for z, parts in stack.items()}

  return {name: layers(x) if name in STACKS else x for name, x in tree.items()}


def _joined(leaves: tuple, axis: int) -> Any:
  first = leaves[0]
  if not isinstance(first, ParamSpec):
    return jnp.concatenate(leaves, axis)
  shape, axes = list(first.shape), list(first.axes)
  shape[axis], axes[axis] = sum(leaf.shape[axis] for leaf in leaves), None
  return dataclasses.replace(first, shape=tuple(shape), axes=tuple(axes))


def _is_spec(leaf: Any) -> bool:
  return isinstance(leaf, ParamSpec)


def abstract_params(c: ModelConfig, dtype, shardings=None) -> dict:
  """ShapeDtypeStructs of the parameters, with shardings where given."""
  return abstract(param_specs(c), dtype, shardings)


def abstract(specs: dict, dtype, shardings=None) -> dict:
  """ShapeDtypeStructs of a tree of ParamSpecs, with shardings where given."""
  placed = trees.flatten(shardings) if shardings is not None else {}
  return trees.map_with_path(
    lambda path, spec: jax.ShapeDtypeStruct(
      spec.shape, dtype, sharding=placed.get(path)
    ),
    specs,
  )


def init(c: ModelConfig, key: jax.Array, dtype=jnp.float32) -> dict:
  """Fresh parameters."""
  return draw(param_specs(c), key, dtype)


def draw(specs: dict, key: jax.Array, dtype=jnp.float32) -> dict:
  """Fresh arrays: truncated normal of variance 1 / fan_in, one key per path."""

  def one(path: str, spec: ParamSpec) -> jax.Array:
    if not spec.fan_in:
      return jnp.full(spec.shape, spec.fill, dtype)
    from_path = jax.random.fold_in(key, prng.number_of(path))
    unit = jax.random.truncated_normal(from_path, -3.0, 3.0, spec.shape, jnp.float32)
    return (unit * spec.fan_in**-0.5).astype(dtype)

  return trees.map_with_path(one, specs)


def num_params(c: ModelConfig, *, mtp: bool = True) -> int:
  """Number of parameters, from the specs alone.

  Args:
    mtp: count the module that predicts one token further; its embedding and head are
      the model's own and count once.
  """
  flat = trees.flatten(param_specs(c))
  return sum(
    math.prod(spec.shape)
    for path, spec in flat.items()
    if mtp or not path.startswith("mtp/")
  )


def num_active_params(c: ModelConfig) -> int:
  """Parameters that a token goes through, embedding and head included, without MTP."""
  total = num_params(c, mtp=False)
  if c.experts is None:
    return total
  e = c.experts
  unused = 3 * c.width * e.ffw * (e.count - e.per_token)
  return total - unused * (c.depth - c.dense_depth)
