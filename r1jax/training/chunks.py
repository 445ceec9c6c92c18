"""Masked tokens of packed rows, a chunk at a time.

Letters: B rows, L tokens in a row, P = L and a rest to whole chunks, C tokens in a
chunk.

A chunk is some columns of every row, so that a mesh splits its work like it splits the
rows. Masked tokens come first in each row; what lies behind the last is never computed.
"""

import jax
import jax.numpy as jnp

from r1jax.types import Array


class Chunks:
  """How rows of a mask are cut.

  Args:
    size: tokens of all rows together in a chunk; one a row at least.

  Attributes:
    count: int32 scalar, as many as the row with most masked tokens needs.
  """

  def __init__(self, mask_BL: Array, size: int):
    self._masked_BL = masked_BL = jnp.asarray(mask_BL) > 0
    num_rows, length = masked_BL.shape
    self._columns = min(max(size // num_rows, 1), length)
    order_BL = jnp.argsort(~masked_BL, axis=1, stable=True)
    rest_C = length + jnp.arange(-length % self._columns, dtype=order_BL.dtype)
    rest_BC = jnp.broadcast_to(rest_C, (num_rows, len(rest_C)))
    self._order_BP = jnp.concatenate([order_BL, rest_BC], axis=1)
    self._place_BL = jnp.cumsum(masked_BL, axis=1) - 1
    self.count = -(-masked_BL.sum(axis=1).max() // self._columns)

  def masked_first(self, x_BL: jax.Array) -> jax.Array:
    """[B, L, ...] -> [B, P, ...]."""

    @jax.vmap
    def one(x_L, order_P):
      return x_L.at[order_P].get(mode="fill", fill_value=0, unique_indices=True)

    return one(x_BL, self._order_BP)

  def in_place(self, x_BP: jax.Array) -> jax.Array:
    """[B, P] -> [B, L], 0 where the mask is 0."""
    x_BL = jnp.take_along_axis(x_BP, self._place_BL, axis=1)
    return jnp.where(self._masked_BL, x_BL, 0.0)

  def take(self, x_BP: jax.Array, index: jax.Array) -> jax.Array:
    """One chunk of what is masked first, [C, ...]."""
    start = index * self._columns
    x = jax.lax.dynamic_slice_in_dim(x_BP, start, self._columns, axis=1)
    return x.reshape(-1, *x_BP.shape[2:])

  def put(self, x_BP: jax.Array, x_C: jax.Array, index: jax.Array) -> jax.Array:
    """With one chunk replaced."""
    x = x_C.reshape(len(x_BP), self._columns, *x_BP.shape[2:])
    start = index * self._columns
    return jax.lax.dynamic_update_slice_in_dim(x_BP, x, start, axis=1)
