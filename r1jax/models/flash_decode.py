"""Attention of a decode step on a GPU: one kernel that reads what is live, no more.

Letters: S slots, Q prompts, P prompt slots, W own columns, C columns of a block, K kv
heads, R query heads per kv head, M of them with padding, H head width, I numbers that
a slot's program is told.

A program has a slot's kv head. It goes over the slot's prompt and over the blocks of
the ring that hold the slot's tokens, with one running softmax (flash decoding,
arXiv 2205.14135 with one query), and writes the new token's key and value where they
belong. So a step costs what its slots' lengths say, whatever is allocated, and one
compiled step serves all lengths. The samples of a prompt read it one after another, out
of the GPU's cache as far as it holds it.

Written in Pallas for its Triton backend, which jax 0.11 has and calls deprecated.
`attention.fits_kernel` says when it is used; else XLA's products do the same.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from r1jax.models.cache import BLOCK
from r1jax.sharding import Partition

_WARPS, _STAGES = 8, 2
_ROWS = 16  # the least that a matrix product of Triton takes


def attend(
  q_SKRH: jax.Array,
  k_SKH: jax.Array,
  v_SKH: jax.Array,
  held: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  prompt_S: jax.Array,
  prompt_length_S: jax.Array,
  length_S: jax.Array,
  column: jax.Array,
  *,
  scale: float,
  partition: Partition,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One token of each slot attends to its prompt, its own tokens, and itself.

  Args:
    held: own keys [S, K, H, W] and values [S, K, W, H], prompts' [Q, K, H, P] and
      [Q, K, P, H].
    prompt_S: the prompt of each slot; of its device's, where there are several.
    length_S: own tokens of each slot, the new one not among them.
    column: where the new token is written; the slot's tokens lie before it, around the
      ring.

  Returns:
    (mixed_SKRH, own keys and own values with the new token in them).
  """

  def local(q_SKRH, k_SKH, v_SKH, keys, values, prompt_keys, prompt_values, told_SI):
    slots, kv_heads = q_SKRH.shape[:2]
    kernel = functools.partial(_kernel, scale=scale)
    whole = pl.BlockSpec()
    own = keys.shape, values.shape
    return pl.pallas_call(
      kernel,
      grid=(slots, kv_heads),
      in_specs=[whole] * 8,
      out_specs=[whole] * 3,
      out_shape=[
        jax.ShapeDtypeStruct(shape, q_SKRH.dtype) for shape in (q_SKRH.shape, *own)
      ],
      input_output_aliases={3: 1, 4: 2},
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
      interpret=interpret,
      name="flash_decode",
    )(q_SKRH, k_SKH, v_SKH, keys, values, prompt_keys, prompt_values, told_SI)

  told_SI = jnp.stack(
    [length_S, jnp.full_like(length_S, column), prompt_S, prompt_length_S], axis=1
  ).astype(jnp.int32)
  arrays = (q_SKRH, k_SKH, v_SKH, *held, told_SI)
  if partition.mesh is not None and partition.mesh.size > 1:
    heads, rows = partition.pspec(("batch", "kv_heads")), partition.pspec(("batch",))
    local = jax.shard_map(
      local,
      mesh=partition.mesh,
      in_specs=(*[heads] * 7, rows),
      out_specs=(heads,) * 3,
      check_vma=False,
    )
  return tuple(local(*arrays))


def _kernel(
  q_ref, k_ref, v_ref, keys_in, values_in, prompt_k, prompt_v, told_ref,
  out_ref, keys_ref, values_ref, *, scale,
):  # fmt: skip
  """One slot's kv head: all refs are whole arrays, of the shapes that `attend` has.

  `keys_in` and `keys_ref`, and the two of values, are the same memory. The new token is
  taken from registers: what is read of its column does not count.
  """
  s, head = pl.program_id(0), pl.program_id(1)
  length, column = told_ref[s, 0], told_ref[s, 1]
  prompt, prompt_length = told_ref[s, 2], told_ref[s, 3]
  num_rows, num_columns = q_ref.shape[2], keys_in.shape[3]
  block_C = jnp.arange(BLOCK)
  row_M = jnp.arange(_rows(num_rows))
  is_row_M1 = (row_M < num_rows)[:, None]
  q_MH = triton.load(q_ref.at[s, head, pl.ds(0, len(row_M))], mask=is_row_M1, other=0.0)

  k_H, v_H = k_ref[s, head], v_ref[s, head]
  triton.store(keys_ref.at[s, head, :, column], k_H)
  triton.store(values_ref.at[s, head, column], v_H)
  product_MH = q_MH.astype(jnp.float32) * k_H.astype(jnp.float32)[None]
  top_M = jnp.sum(product_MH, axis=1) * scale
  out_MH = jnp.broadcast_to(v_H.astype(jnp.float32)[None], q_MH.shape)

  def add(state, k_HC, v_CH, is_live_C):
    top_M, total_M, out_MH = state
    score_MC = _product(q_MH, k_HC) * scale
    score_MC = jnp.where(is_live_C[None], score_MC, -jnp.inf)
    new_M = jnp.maximum(top_M, jnp.max(score_MC, axis=1))
    weight_MC = jnp.exp(score_MC - new_M[:, None])
    shrink_M = jnp.exp(top_M - new_M)
    out_MH = out_MH * shrink_M[:, None] + _product(weight_MC.astype(v_CH.dtype), v_CH)
    return new_M, total_M * shrink_M + jnp.sum(weight_MC, axis=1), out_MH

  def of_prompt(i, state):
    part = pl.ds(i * BLOCK, BLOCK)
    k_HC, v_CH = prompt_k[prompt, head, :, part], prompt_v[prompt, head, part]
    return add(state, k_HC, v_CH, i * BLOCK + block_C < prompt_length)

  first = jax.lax.rem(column - length + num_columns, num_columns)
  skipped = jax.lax.rem(first, BLOCK)
  num_blocks = num_columns // BLOCK

  def of_own(i, state):
    block = jax.lax.rem(first // BLOCK + i, num_blocks)
    age_C = column - block * BLOCK - block_C
    age_C = jnp.where(age_C < 0, age_C + num_columns, age_C)
    part = pl.ds(block * BLOCK, BLOCK)
    k_HC, v_CH = keys_in[s, head, :, part], values_in[s, head, part]
    return add(state, k_HC, v_CH, (age_C >= 1) & (age_C <= length))

  state = top_M, jnp.ones_like(top_M), out_MH
  state = jax.lax.fori_loop(0, pl.cdiv(prompt_length, BLOCK), of_prompt, state)
  own_blocks = jnp.minimum(pl.cdiv(skipped + length, BLOCK), num_blocks)
  _, total_M, out_MH = jax.lax.fori_loop(0, own_blocks, of_own, state)
  out_MH = (out_MH / total_M[:, None]).astype(out_ref.dtype)
  triton.store(out_ref.at[s, head, pl.ds(0, len(row_M))], out_MH, mask=is_row_M1)


def _rows(num_rows: int) -> int:
  """Rows of queries with padding: a power of two."""
  return max(_ROWS, pl.next_power_of_2(num_rows))


def _product(a, b):
  dims = (((1,), (0,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
