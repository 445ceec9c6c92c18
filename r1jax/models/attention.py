"""Attention of a layer: grouped-query, or from a latent.

Letters: B rows (or slots S), L tokens, D width, N query heads, K kv heads, R = N / K
query heads per kv head, H head width, C context tokens, W own cache slots, P prompt
slots.

Both kinds make queries, keys and values of a layer's input; what these attend to is a
`Context`: the tokens of the row, or a cache and the tokens.
"""

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models import kernels, layers, quantized, rope
from r1jax.models.cache import BLOCK, Cache, PromptCache
from r1jax.models.config import ModelConfig
from r1jax.models.quantized import Held
from r1jax.sharding import LOCAL, Partition

# (q_BLKRH, k_BLKH, v_BLKH or None, held, scale) -> (mixed_BLKRH, held), where `held` is
# what the cache has of the layer: (keys, values), going in with the prompts' two behind
# them, or as None where that is nothing. Without values those are the first of the
# key's dimensions. Where what is cached is not k and v, these two are given as `kept`.
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
  if "qkv" in attn:
    all_BLMH = layers.linear(x_BLD, attn["qkv"])
    if c.qkv_bias:
      all_BLMH += attn["qkv_bias"]
    ends = (c.heads, c.heads + c.kv_heads)
    q_BLNH, k_BLKH, v_BLKH = jnp.split(all_BLMH, ends, axis=-2)
  else:
    q_BLNH, k_BLKH, v_BLKH = (layers.linear(x_BLD, attn[name]) for name in "qkv")
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

  The latent and the shared rotary key are what is cached. Among new tokens, keys and
  values are made of the latent. Where there are cached ones, the maps that would make
  them are applied to the queries and the result instead: all heads attend to one key.

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
  k_BL1H = jnp.concatenate([latent_BLC[:, :, None], k_rope], axis=-1)
  scale = rope.softmax_scale(c)
  if held is None:
    up = layers.linear(latent_BLC, attn["kv_up"])
    k_nope, v_BLNH = jnp.split(up, [m.nope_dim], axis=-1)
    k_rope = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], m.rope_dim))
    k_BLNH = jnp.concatenate([k_nope, k_rope], axis=-1)
    q_BLN1H = jnp.concatenate([q_nope, q_rope], axis=-1)[:, :, :, None]
    mixed_BLN1H, held = context(
      q_BLN1H, k_BLNH, v_BLNH, held, scale, kept=(k_BL1H, None)
    )
    mixed_BLNH = mixed_BLN1H[:, :, :, 0]
  else:
    k_up, v_up = jnp.split(layers.matrix(attn["kv_up"]), [m.nope_dim], axis=-1)
    q_latent = jnp.einsum("blnh,cnh->blnc", q_nope, k_up)
    q_BL1NH = jnp.concatenate([q_latent, q_rope], axis=-1)[:, :, None]
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

  def context(q_BLKRH, k_BLKH, v_BLKH, held, scale, *, kept=None):
    del kept
    arrays = q_BLKRH, k_BLKH, v_BLKH, segments_BL, parents_BL
    return kernels.causal(*arrays, scale=scale, partition=partition), held

  return context


def filling(cache: Cache, partition: Partition) -> Context:
  """Each token attends to those of its row that are not behind it; all are cached.

  Args:
    cache: `filled_at_once` by the tokens.
  """
  among = among_tokens(None, None, partition)

  def context(q_BLKRH, k_BLKH, v_BLKH, held, scale, *, kept=None):
    k_new, v_new = (k_BLKH, v_BLKH) if kept is None else kept
    (k_BKHW,), *_ = cache.keys
    keys = (quantized.like(jnp.moveaxis(k_new, 1, -1), k_BKHW, -2),)
    values = ()
    if v_new is not None:
      (v_BKWH,), *_ = cache.values
      values = (quantized.like(jnp.moveaxis(v_new, 1, 2), v_BKWH, -1),)
    mixed_BLKRH, _ = among(q_BLKRH, k_BLKH, v_BLKH, held, scale)
    return mixed_BLKRH, (keys, values)

  return context


def with_cache(
  c: ModelConfig,
  cache: Cache,
  num_new: int,
  dtype,
  window: int | None,
  partition: Partition,
) -> Context:
  """Writes tokens to the slots' columns, then attends to own part and prompt.

  Args:
    num_new: tokens of each slot, L.
    dtype: of the queries.
    window: own columns that are attended to, those of one or more of the cache's
      arrays; None means all. The kernel for GPUs reads those that are live.
  """
  if fits_kernel(cache, num_new, dtype, partition):
    return _by_kernel(cache, partition)
  num_own = cache.num_columns if window is None else window
  masks = [_own(cache, num_new, num_own)]
  prompts = None
  if cache.prompt is not None:
    prompts = _Prompts(cache.prompt, len(cache.length_S), num_new)
    masks.append(prompts.mask_SLP)
  # Made once: XLA's CPU backend would make it again for every head of every layer.
  mask_SLC = jax.lax.optimization_barrier(jnp.concatenate(masks, axis=-1))

  def values_of(k_BKHC):
    """Those of latent attention lie in the keys."""
    return jax.tree.map(
      lambda leaf: jnp.swapaxes(leaf[:, :, : c.latent.kv_rank], -1, -2), k_BKHC
    )

  def context(q_SLKRH, k_SLKH, v_SLKH, held, scale):
    keys, values, *shared = held
    keys = _stored(keys, jnp.moveaxis(k_SLKH, 1, -1), cache.column, -1, window)
    if v_SLKH is not None:
      values = _stored(values, jnp.moveaxis(v_SLKH, 1, 2), cache.column, -2, window)
    own = [
      (k_SKHW, values_of(k_SKHW) if v_SLKH is None else values[number])
      for number, k_SKHW in enumerate(keys)
      if cache.windows[number] <= num_own
    ]
    scores = [layers.scores(q_SLKRH, k_SKHW) for k_SKHW, _ in own]
    if prompts is not None:
      k_QKHP, v_QKPH = shared
      scores.append(prompts.scores(q_SLKRH, k_QKHP))
    score_SKRLC = jnp.concatenate(scores, axis=-1) * scale
    weight_SKRLC, _ = layers.softmax(score_SKRLC, mask_SLC[:, None, None])
    ends = np.cumsum([score.shape[-1] for score in scores])[:-1]
    weights = jnp.split(weight_SKRLC, ends, axis=-1)
    dtype = q_SLKRH.dtype
    out_SKRLH = sum(
      layers.mixed(weight, v_SKWH, dtype)
      for weight, (_, v_SKWH) in zip(weights, own, strict=False)
    )
    if prompts is not None:
      v_QKPH = values_of(k_QKHP) if v_QKPH is None else v_QKPH
      out_SKRLH += prompts.mixed(weights[-1], v_QKPH, dtype)
    return jnp.moveaxis(out_SKRLH, 3, 1), (keys, values)

  return context


def fits_kernel(cache: Cache, num_new: int, dtype, partition: Partition) -> bool:
  """Whether `flash_decode` can take a step: one token of each slot, in 16 bits."""
  prompt, keys = cache.prompt, cache.keys[0]
  if num_new != 1 or prompt is None or cache.column.ndim or len(keys) != 1:
    return False
  (k_SKHW,) = keys
  return (
    partition.has_flash_kernels
    and importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    and k_SKHW.dtype == dtype
    and dtype in (jnp.bfloat16, jnp.float16)
    and bool(cache.values[0])
    and k_SKHW.shape[2] in (64, 128, 256)
    and k_SKHW.shape[3] % BLOCK == 0
    and prompt.keys[0].shape[3] % BLOCK == 0
    and k_SKHW.shape[1] % partition.size("kv_heads") == 0
    and prompt.queues == partition.size("batch")
  )


def _by_kernel(cache: Cache, partition: Partition) -> Context:
  """`with_cache` by `flash_decode`."""
  # A tenth of a second, which no program without it is to wait for.
  from r1jax.models import flash_decode

  prompt = cache.prompt
  num_prompts = len(prompt.length_Q)
  # Slots without a row attend to some prompt.
  row_S = jnp.minimum(prompt.row_S, num_prompts * prompt.samples - 1)
  prompt_S = row_S // prompt.samples
  prompt_length_S = prompt.length_Q[prompt_S]
  here_S = prompt_S % (num_prompts // prompt.queues)

  def context(q_SLKRH, k_SLKH, v_SLKH, held, scale):
    (k_SKHW,), (v_SKWH,), *shared = held
    mixed_SKRH, k_SKHW, v_SKWH = flash_decode.attend(
      *(x_SL[:, 0] for x_SL in (q_SLKRH, k_SLKH, v_SLKH)),
      (k_SKHW, v_SKWH, *shared),
      here_S,
      prompt_length_S,
      cache.length_S,
      cache.column,
      scale=scale,
      partition=partition,
    )
    return mixed_SKRH[:, None], ((k_SKHW,), (v_SKWH,))

  return context


def _own(cache: Cache, num_new: int, num_columns: int) -> jax.Array:
  """Which of the first columns each new token attends to, [S, L, W].

  Those of its slot's last tokens, itself included: the age of a column counts backwards
  around the ring.
  """
  new_L = jnp.arange(num_new)
  column_SL = jnp.broadcast_to(cache.column, cache.length_S.shape)[:, None] + new_L
  age_SLW = (column_SL[..., None] - jnp.arange(num_columns)) % cache.num_columns
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


class _Prompts:
  """Products of slots with the prompts that their rows share.

  All samples of a prompt go through one product, which reads it once: slots' queries
  are gathered by row. A prompt that no slot works on costs the same; where there are
  far more rows than slots, the prompts are gathered instead, slot by slot.
  """

  def __init__(self, prompt: PromptCache, num_slots: int, num_new: int):
    self._num_new, self._queues = num_new, prompt.queues
    self._shape_QM = len(prompt.length_Q), prompt.samples * num_new
    num_rows = len(prompt.length_Q) * prompt.samples
    row_S = jnp.minimum(prompt.row_S, num_rows - 1)
    self._prompt_S = row_S // prompt.samples
    self._is_gathered = num_rows > _ROWS_A_SLOT * num_slots
    # A slot for each row, and the row of each slot; None where slots are rows.
    self._slot_B = self._row_S = None
    if num_rows != num_slots:
      slot_B = jnp.zeros(num_rows, jnp.int32)
      self._slot_B = slot_B.at[prompt.row_S].set(jnp.arange(num_slots), mode="drop")
      self._row_S = row_S
    columns = prompt.keys[0].shape[-1]
    live_QP = jnp.arange(columns) < prompt.length_Q[:, None]
    live_S1P = self._taken(live_QP, self._prompt_S)[:, None]
    self.mask_SLP = jnp.broadcast_to(live_S1P, (num_slots, num_new, columns))

  def scores(self, q_SLKRH: jax.Array, k_QKHP: Held) -> jax.Array:
    """float32 [S, K, R, L, P]."""
    if self._is_gathered:
      return layers.scores(q_SLKRH, self._gathered(k_QKHP))
    score_QKRMP = layers.scores(self._by_prompt(q_SLKRH), k_QKHP)
    return jnp.moveaxis(self._by_slot(jnp.moveaxis(score_QKRMP, 3, 1)), 1, 3)

  def mixed(self, weight_SKRLP: jax.Array, v_QKPH: Held, dtype) -> jax.Array:
    """[S, K, R, L, H]."""
    if self._is_gathered:
      return layers.mixed(weight_SKRLP, self._gathered(v_QKPH), dtype)
    weight_QMKRP = self._by_prompt(jnp.moveaxis(weight_SKRLP, 3, 1))
    out_QKRMH = layers.mixed(jnp.moveaxis(weight_QMKRP, 1, 3), v_QKPH, dtype)
    return jnp.moveaxis(self._by_slot(jnp.moveaxis(out_QKRMH, 3, 1)), 1, 3)

  def _gathered(self, held: Held) -> Held:
    return jax.tree.map(lambda leaf: self._taken(leaf, self._prompt_S), held)

  def _by_prompt(self, x_SL: jax.Array) -> jax.Array:
    """[S, L, ...] -> [Q, M, ...], M = G * L."""
    x_BL = x_SL if self._slot_B is None else self._taken(x_SL, self._slot_B)
    return x_BL.reshape(*self._shape_QM, *x_SL.shape[2:])

  def _by_slot(self, x_QM: jax.Array) -> jax.Array:
    x_BL = x_QM.reshape(-1, self._num_new, *x_QM.shape[2:])
    return x_BL if self._row_S is None else self._taken(x_BL, self._row_S)

  def _taken(self, x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index], where each part of the index points into its part of x.

    Said so that the parts may lie on different devices: none asks another.
    """
    x_U = x.reshape(self._queues, -1, *x.shape[1:])
    size = x_U.shape[1]
    index_U = index.reshape(self._queues, -1) - size * jnp.arange(self._queues)[:, None]
    # Idle slots, and rows without a slot, point anywhere.
    found_U = jax.vmap(jnp.take, (0, 0, None))(x_U, jnp.clip(index_U, 0, size - 1), 0)
    return found_U.reshape(-1, *x.shape[1:])
