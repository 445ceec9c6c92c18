"""Sums and means over the answer that a token belongs to.

Letters: B rows, L tokens in a row. Rows are packed: an answer lies in one row whole, as
the masked tokens of one segment.
"""

import jax
import jax.numpy as jnp


def total(x_BL: jax.Array, mask_BL: jax.Array, segments_BL: jax.Array) -> jax.Array:
  """On every token, the sum of x over the masked tokens of its segment.

  Args:
    x_BL: differentiated through; may be anything where the mask is 0.
    segments_BL: int32 in [0, L]; 0 is padding.
  """
  x_BL = jnp.where(mask_BL > 0, x_BL, 0.0)
  capacity = x_BL.shape[1] + 1

  @jax.vmap
  def row(x_L, segments_L):
    return jnp.zeros(capacity, x_L.dtype).at[segments_L].add(x_L)[segments_L]

  return row(x_BL, jnp.asarray(segments_BL))


def mean(x_BL: jax.Array, mask_BL: jax.Array, segments_BL: jax.Array) -> jax.Array:
  """As `total`, over the number of those tokens; 0 where a segment has none."""
  count_BL = total(jnp.ones_like(x_BL), mask_BL, segments_BL)
  return total(x_BL, mask_BL, segments_BL) / jnp.maximum(count_BL, 1.0)
