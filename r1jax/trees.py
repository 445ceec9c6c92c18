"""Parameter trees by path: names, masks, sizes.

A path is the keys of a nested dict joined by "/", such as `layers/attn/q`. Freezing,
weight decay, checkpoint maps and weight import all address parameters this way.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from r1jax.errors import InputError


def flatten(tree: Any) -> dict[str, Any]:
  """Nested dict -> {path: leaf}."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Any:
  """{path: leaf} -> nested dict."""
  return traverse_util.unflatten_dict(flat, sep="/")


def map_with_path(f: Callable[[str, Any], Any], tree: Any) -> Any:
  return unflatten({path: f(path, leaf) for path, leaf in flatten(tree).items()})


def mask(tree: Any, patterns: tuple[str, ...], *, key: str) -> Any:
  """True where any of the regular expressions matches the whole path.

  Args:
    patterns: full-match regular expressions over paths.
    key: the config key the patterns came from, for the error.

  Raises:
    InputError: a pattern matches no parameter.
  """
  paths = list(flatten(tree))
  for pattern in patterns:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise InputError(f"{key}: {pattern!r} matches no parameter; paths: {paths}")
  return map_with_path(
    lambda path, _: any(re.fullmatch(pattern, path) for pattern in patterns), tree
  )


def count(tree: Any) -> int:
  """Number of scalars in a tree of arrays or shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays or ShapeDtypeStructs."""
  return sum(
    int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def digest(value: Any) -> str:
  """16 hex digits of the SHA-256 of a text or of a JSON-like value's repr."""
  text = value if isinstance(value, str) else repr(value)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksum(tree: Any) -> jax.Array:
  """A uint32 that changes when any one array element does (jit it).

  Sum over elements of their bits, mixed with their position by a bijection, modulo
  2**32: equal trees agree on any sharding, since integer sums commute, and changes of
  many elements (a sign, a scale) do not cancel, since the mixing is not linear.
  """
  # Arrays of one shape are added first: XLA's CPU backend writes down, of all of them
  # at once, what is to be summed up.
  sums: dict[tuple[int, ...], jax.Array] = {}
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    width = np.dtype(leaf.dtype).itemsize * 8
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{width}").astype(jnp.uint32)
    place = jnp.uint32(number)
    for axis in range(leaf.ndim):
      index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
      place = place * jnp.uint32(2654435761) + index
    sums[leaf.shape] = sums.get(leaf.shape, 0) + _mix(bits ^ _mix(place))
  return sum(
    (jnp.sum(mixed, dtype=jnp.uint32) for mixed in sums.values()), jnp.uint32(0)
  )


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 whose every output bit depends on every input bit.

  Constants of https://github.com/skeeto/hash-prospector ("lowbias32").
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
