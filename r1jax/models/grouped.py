"""Matrix products of sorted rows, each group of rows with a matrix of its own.

Letters: P rows, E groups, D inputs, F outputs, N blocks of M rows.

On TPU `jax.lax.ragged_dot` is a kernel. Elsewhere XLA multiplies all rows with all
matrices, E times the work; there groups are cut into blocks of rows instead, which are
multiplied one after another (tests/benchmarks/groups.py measures both).
"""

import jax
import jax.numpy as jnp

from r1jax.models.layers import Adapted, Matrix
from r1jax.models.quantized import Quantized


def product(x_PD: jax.Array, w_EDF: Matrix, sizes_E: jax.Array) -> jax.Array:
  """[P, F]: the first sizes[0] rows times w[0], the next sizes[1] times w[1], ...

  Rows behind all groups give 0.
  """
  if isinstance(w_EDF, Adapted):
    update = product(product(x_PD, w_EDF.a, sizes_E), w_EDF.b, sizes_E)
    return product(x_PD, w_EDF.base, sizes_E) + w_EDF.scale * update
  if isinstance(w_EDF, Quantized):
    scale_PF = jnp.repeat(
      w_EDF.scale[:, 0], sizes_E, axis=0, total_repeat_length=len(x_PD)
    )
    return _product(x_PD, w_EDF.values, sizes_E) * scale_PF
  return _product(x_PD, w_EDF, sizes_E)


@jax.custom_vjp
def _product(x_PD, w_EDF, sizes_E):
  return jax.lax.platform_dependent(
    x_PD, w_EDF, sizes_E, tpu=_ragged, default=_by_blocks
  )


def _forward(x_PD, w_EDF, sizes_E):
  return _product(x_PD, w_EDF, sizes_E), (x_PD, w_EDF, sizes_E)


def _backward(kept, out_PF):
  x_PD, w_EDF, sizes_E = kept
  x_bar_PD = _product(out_PF, jnp.swapaxes(w_EDF, 1, 2), sizes_E)
  # Its own rule: the transpose of a loop over blocks would add whole arrays of weights.
  w_bar_EDF = jax.lax.platform_dependent(
    x_PD, out_PF, sizes_E, tpu=_outer_ragged, default=_outer_by_blocks
  )
  return x_bar_PD, w_bar_EDF.astype(w_EDF.dtype), None


_product.defvjp(_forward, _backward)


def _blocks(num_rows: int, sizes_E: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(rows [N, M], num_rows where a block has none; group [N], E where it is unused)."""
  num_groups = sizes_E.shape[0]
  # Half an even group, so that few rows of a block are empty.
  block = min(128, max(8, 1 << (num_rows // num_groups // 2).bit_length()))
  num_blocks = num_rows // block + min(num_groups, num_rows)
  first_E = jnp.cumsum(sizes_E) - sizes_E
  blocks_E = -(-sizes_E // block)
  end_E = jnp.cumsum(blocks_E)
  number_N = jnp.arange(num_blocks)
  group_N = jnp.searchsorted(end_E, number_N, side="right")
  at_N = jnp.minimum(group_N, num_groups - 1)
  offset_N = (number_N - (end_E - blocks_E)[at_N]) * block
  inside_NM = offset_N[:, None] + jnp.arange(block)
  used_NM = (inside_NM < sizes_E[at_N][:, None]) & (group_N < num_groups)[:, None]
  rows_NM = jnp.where(used_NM, first_E[at_N][:, None] + inside_NM, num_rows)
  return rows_NM, group_N


def _gather(x_PD: jax.Array, rows_NM: jax.Array) -> jax.Array:
  return x_PD.at[rows_NM].get(mode="fill", fill_value=0)


def _ragged(x_PD, w_EDF, sizes_E):
  return jax.lax.ragged_dot(x_PD, w_EDF.astype(x_PD.dtype), sizes_E)


def _by_blocks(x_PD, w_EDF, sizes_E):
  rows_NM, group_N = _blocks(x_PD.shape[0], sizes_E)
  num_groups, _, width = w_EDF.shape

  def one(block):
    x_MD, group = block
    return jax.lax.cond(
      group < num_groups,
      lambda: x_MD @ w_EDF[group].astype(x_MD.dtype),
      lambda: jnp.zeros((x_MD.shape[0], width), x_MD.dtype),
    )

  out_NMF = jax.lax.map(one, (_gather(x_PD, rows_NM), group_N))
  out_PF = jnp.zeros((x_PD.shape[0], width), out_NMF.dtype)
  return out_PF.at[rows_NM].set(out_NMF, mode="drop")


def _outer_by_blocks(x_PD, out_PF, sizes_E):
  """[E, D, F]: of each group, the sum of its rows' outer products, in float32."""
  rows_NM, group_N = _blocks(x_PD.shape[0], sizes_E)
  shape = (sizes_E.shape[0], x_PD.shape[1], out_PF.shape[1])

  def add(sums_EDF, block):
    x_MD, out_MF, group = block
    outer_DF = jnp.matmul(x_MD.T, out_MF, preferred_element_type=jnp.float32)
    return sums_EDF.at[group].add(outer_DF, mode="drop"), None

  blocks = (_gather(x_PD, rows_NM), _gather(out_PF, rows_NM), group_N)
  return jax.lax.scan(add, jnp.zeros(shape, jnp.float32), blocks)[0]


def _outer_ragged(x_PD, out_PF, sizes_E):
  w_EDF = jnp.zeros((sizes_E.shape[0], x_PD.shape[1], out_PF.shape[1]), x_PD.dtype)
  _, transposed = jax.vjp(lambda w_EDF: jax.lax.ragged_dot(x_PD, w_EDF, sizes_E), w_EDF)
  return transposed(out_PF)[0].astype(jnp.float32)
