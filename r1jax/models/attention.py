"""Attention of a layer: grouped-query, or from a latent.

Letters: B rows (or slots S), L tokens, D width, N query heads, K kv heads, R = N / K
query heads per kv head, H head width, C context tokens, W own cache slots, P prompt
slots.

Both kinds make queries, keys and values of a layer's input; what these attend to is a
`Context`: the tokens of the row, or a cache and the tokens.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.models import kernels, layers, quantized, rope
from r1jax.models.cache import Cache, PromptCache
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition

# (q_BLKRH, k_BLKH, v_BLKH or None, held, scale) -> (mixed_BLKRH, held), where `held` is
# what the cache has of the layer: (keys, values), going in with the prompts' two behind
# them. Without values those are the first of the key's dimensions.
Context = Callable[..., tuple[jax.Array, tuple | None]]
# Rows of a rollout to a slot, above which a slot's prompt is gathered.
_ROWS_A_SLOT = 4
# Of the latents' norms, whatever a model's config says of the others.
_LATENT_EPS = 1e-6


def grouped_query(
  c: ModelConfig, attn: dict, x_BLD, cos_sin: tuple, context: Context, held
) -> tuple[jax.Array, tuple | None]:
  """Grouped-query attention (arXiv 2305.13245), with biases or norms where it has them.

  Returns:
    (out_BLD, the layer's part of the cache).
  """
  q_BLNH = layers.linear(x_BLD, attn["q"])
  k_BLKH = layers.linear(x_BLD, attn["k"])
  v_BLKH = layers.linear(x_BLD, attn["v"])
  if c.qkv_bias:
    q_BLNH, k_BLKH = q_BLNH + attn["q_bias"], k_BLKH + attn["k_bias"]
    v_BLKH = v_BLKH + attn["v_bias"]
  if c.qk_norm:
    q_BLNH = layers.rms_norm(q_BLNH, attn["q_norm"], c.norm_eps)
    k_BLKH = layers.rms_norm(k_BLKH, attn["k_norm"], c.norm_eps)
  q_BLNH, k_BLKH = rope.rotate(q_BLNH, cos_sin), rope.rotate(k_BLKH, cos_sin)
  q_BLKRH = q_BLNH.reshape(*q_BLNH.shape[:2], c.kv_heads, -1, c.head_dim)
  mixed_BLKRH, held = context(q_BLKRH, k_BLKH, v_BLKH, held, rope.softmax_scale(c))
  return layers.linear(mixed_BLKRH.reshape(q_BLNH.shape), attn["o"], contract=2), held


def latent(
  c: ModelConfig, attn: dict, x_BLD, cos_sin: tuple, context: Context, held
) -> tuple[jax.Array, tuple | None]:
  """Multi-head latent attention (arXiv 2405.04434, section 2.1).

  Without a cache keys and values are made of the latent. With one, the latent and the
  shared rotary key are what is cached, and the maps that would make keys and values of
  them are applied to the queries and the result: all heads attend to one key.

  Returns:
    (out_BLD, the layer's part of the cache).
  """
  m = c.latent
  if m.q_rank:
    q_latent = layers.linear(x_BLD, attn["q_down"])
    q_latent = layers.rms_norm(q_latent, attn["q_norm"], _LATENT_EPS)
    q_BLNH = layers.linear(q_latent, attn["q_up"])
  else:
    q_BLNH = layers.linear(x_BLD, attn["q"])
  q_nope, q_rope = jnp.split(q_BLNH, [m.nope_dim], axis=-1)
  q_rope = rope.rotate(q_rope, cos_sin)
  down = layers.linear(x_BLD, attn["kv_down"])
  # The rotary key is not normalised.
  latent_BLC, k_rope = jnp.split(down[:, :, None], [m.kv_rank], axis=-1)
  latent_BLC = layers.rms_norm(latent_BLC[:, :, 0], attn["kv_norm"], _LATENT_EPS)
  k_rope = rope.rotate(k_rope, cos_sin)
  scale = rope.softmax_scale(c)
  if held is None:
    up = layers.linear(latent_BLC, attn["kv_up"])
    k_nope, v_BLNH = jnp.split(up, [m.nope_dim], axis=-1)
    k_rope = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], m.rope_dim))
    k_BLNH = jnp.concatenate([k_nope, k_rope], axis=-1)
    q_BLN1H = jnp.concatenate([q_nope, q_rope], axis=-1)[:, :, :, None]
    mixed_BLN1H, held = context(q_BLN1H, k_BLNH, v_BLNH, held, scale)
    mixed_BLNH = mixed_BLN1H[:, :, :, 0]
  else:
    k_up, v_up = jnp.split(layers.matrix(attn["kv_up"]), [m.nope_dim], axis=-1)
    q_latent = jnp.einsum("blnh,cnh->blnc", q_nope, k_up)
    q_BL1NH = jnp.concatenate([q_latent, q_rope], axis=-1)[:, :, None]
    k_BL1H = jnp.concatenate([latent_BLC[:, :, None], k_rope], axis=-1)
    mixed_BL1NC, held = context(q_BL1NH, k_BL1H, None, held, scale)
    mixed_BLNH = jnp.einsum("blnc,cnh->blnh", mixed_BL1NC[:, :, 0], v_up)
  return layers.linear(mixed_BLNH, attn["o"], contract=2), held


def among_tokens(
  segments_BL: jax.Array | None,
  parents_BL: jax.Array | None,
  partition: Partition = LOCAL,
) -> Context:
  """Each token attends to those of its row that are not behind it.

  Args:
    segments_BL: only to those of its own segment; None means all.
    parents_BL: and to those of the segment that its own one continues.
  """

  def context(q_BLKRH, k_BLKH, v_BLKH, held, scale):
    arrays = q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL
    return kernels.causal(*arrays, scale=scale, partition=partition), held

  return context


def with_cache(c: ModelConfig, cache: Cache, window: int | None) -> Context:
  """Writes the tokens to the slots' columns, then attends to own part and prompt.

  Args:
    window: own columns that are attended to, those of one or more of the cache's
      arrays; None means all.
  """

  def values_of(k_BKHC):
    """Those of latent attention lie in the keys."""
    return jax.tree.map(
      lambda leaf: jnp.swapaxes(leaf[:, :, : c.latent.kv_rank], -1, -2), k_BKHC
    )

  def context(q_SLKRH, k_SLKH, v_SLKH, held, scale):
    keys, values, *shared = held
    k_new, v_new = jnp.moveaxis(k_SLKH, 1, -1), None
    keys = _stored(keys, k_new, cache.column, -1, window)
    if v_SLKH is not None:
      v_new = jnp.moveaxis(v_SLKH, 1, 2)
      values = _stored(values, v_new, cache.column, -2, window)
    parts, start = [], 0
    for number, k_SKHW in enumerate(keys):
      end = start + k_SKHW.shape[-1]
      if window is None or start < window:
        v_SKWH = values_of(k_SKHW) if v_new is None else values[number]
        mask_SLW = _own(cache, keys, q_SLKRH.shape[1], start, end)
        parts.append(layers.attend(q_SLKRH, k_SKHW, v_SKWH, mask_SLW, scale=scale))
      start = end
    if shared:
      k_QKHP, v_QKPH = shared
      if v_QKPH is None:
        v_QKPH = values_of(k_QKHP)
      parts.append(_with_prompts(q_SLKRH, k_QKHP, v_QKPH, cache.prompt, scale))
    return layers.join(parts), (keys, values)

  return context


def _own(cache: Cache, keys: tuple, num_new: int, start: int, end: int) -> jax.Array:
  """Which columns from `start` to `end` each new token attends to, [S, L, W].

  Those of its slot's last tokens, itself included: the age of a column counts backwards
  around the ring.
  """
  ring = sum(k_SKHW.shape[-1] for k_SKHW in keys)
  new_L = jnp.arange(num_new)
  column_SL = jnp.broadcast_to(cache.column, cache.length_S.shape)[:, None] + new_L
  age_SLW = (column_SL[..., None] - jnp.arange(start, end)) % ring
  return age_SLW <= (cache.length_S[:, None] + new_L)[..., None]


def _stored(
  held: tuple, new: jax.Array, column: jax.Array, axis: int, window: int | None
) -> tuple:
  """The arrays of a ring with new columns, which lie on `axis`, in them.

  Args:
    column: where the first is written, of all slots or [S].
    window: columns that may be written to; None means all.
  """
  new = quantized.like(new, held[0], -3 - axis)
  ring = sum(array.shape[axis] for array in held)
  stored, start = [], 0
  for array in held:
    if window is None or start < window:
      write = functools.partial(
        _written, column=column, axis=axis, start=start, ring=ring
      )
      array = jax.tree.map(write, array, new)
    stored.append(array)
    start += array.shape[axis]
  return tuple(stored)


def _written(
  array: jax.Array, new: jax.Array, *, column: jax.Array, axis: int, start: int, ring
) -> jax.Array:
  """That one of the ring's arrays whose first column is `start`."""
  size, num_new = array.shape[axis], new.shape[axis]
  if column.ndim:
    place_SL = (column[:, None] + jnp.arange(num_new)) % ring - start
    place_SL = jnp.where(place_SL < 0, size, place_SL)  # dropped
    slot_S1 = jnp.arange(len(array))[:, None]
    where = (slot_S1, *(slice(None),) * (axis + 3), place_SL)
    return array.at[where].set(jnp.moveaxis(new, axis, 1), mode="drop")
  if num_new == 1:
    place = jnp.clip(column - start, 0, size - 1)
    old = jax.lax.dynamic_slice_in_dim(array, place, 1, axis)
    row = jnp.where(place == column - start, new, old)
    return jax.lax.dynamic_update_slice_in_dim(array, row, place, axis)
  place_L = (column + jnp.arange(num_new)) % ring - start
  place_L = jnp.where(place_L < 0, size, place_L)
  where = (slice(None),) * (axis + 4) + (place_L,)
  return array.at[where].set(new, mode="drop")


def _with_prompts(
  q_SLKRH, k_QKHP, v_QKPH, prompt: PromptCache, scale: float
) -> tuple[jax.Array, jax.Array]:
  """Attention of slots to their prompts, (out_SLKRH, logsumexp_SLKR).

  All samples of a prompt go through one product, which reads it once. A prompt that no
  slot works on costs the same; where there are far more rows than slots, prompts are
  gathered slot by slot.
  """
  num_slots, num_new = q_SLKRH.shape[:2]
  num_prompts, samples = k_QKHP.shape[0], prompt.samples
  num_rows = num_prompts * samples
  live_QP = jnp.arange(k_QKHP.shape[-1]) < prompt.length_Q[:, None]
  if num_rows > _ROWS_A_SLOT * num_slots:
    of_S = jnp.minimum(prompt.row_S // samples, num_prompts - 1)
    mask_SLP = jnp.broadcast_to(
      live_QP[of_S][:, None], (num_slots, num_new, live_QP.shape[-1])
    )
    k_SKHP, v_SKPH = jax.tree.map(lambda leaf: leaf[of_S], (k_QKHP, v_QKPH))
    return layers.attend(q_SLKRH, k_SKHP, v_SKPH, mask_SLP, scale=scale)
  never_moves = num_rows == num_slots
  q_BLKRH = q_SLKRH
  if not never_moves:
    slot_B = jnp.zeros(num_rows, jnp.int32)
    slot_B = slot_B.at[prompt.row_S].set(jnp.arange(num_slots), mode="drop")
    q_BLKRH = q_SLKRH[slot_B]
  q_QMKRH = q_BLKRH.reshape(num_prompts, samples * num_new, *q_SLKRH.shape[2:])
  mask_QMP = jnp.broadcast_to(live_QP[:, None], (*q_QMKRH.shape[:2], live_QP.shape[-1]))
  found = layers.attend(q_QMKRH, k_QKHP, v_QKPH, mask_QMP, scale=scale)
  out, lse = (x.reshape(num_rows, num_new, *x.shape[2:]) for x in found)
  if never_moves:
    return out, lse
  row_S = jnp.minimum(prompt.row_S, num_rows - 1)
  return out[row_S], lse[row_S]
