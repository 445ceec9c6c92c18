"""Attention of a layer: grouped-query, or from a latent.

Letters: B rows (or slots S), L tokens, D width, N query heads, K kv heads, R = N / K
query heads per kv head, H head width, C context tokens, W own cache slots, P prompt
slots.

Both kinds make queries, keys and values of a layer's input; what these attend to is a
`Context`: the tokens of the row, or a cache and the tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.models import layers, rope
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig

# (q_BLKRH, k_BLKH, v_BLKH or None, kv, layer, scale) -> (mixed_BLKRH, kv), where kv are
# the cache's arrays. Without values those are the first of the key's dimensions.
Context = Callable[..., tuple[jax.Array, tuple | None]]
# Of the latents' norms, whatever a model's config says of the others.
_LATENT_EPS = 1e-6


def grouped_query(
  c: ModelConfig, attn: dict, x_BLD, cos_sin: tuple, context: Context, kv, z
) -> tuple[jax.Array, tuple | None]:
  """Grouped-query attention (arXiv 2305.13245), with biases or norms where it has them.

  Returns:
    (out_BLD, the cache's arrays).
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
  mixed_BLKRH, kv = context(q_BLKRH, k_BLKH, v_BLKH, kv, z, rope.softmax_scale(c))
  return layers.linear(mixed_BLKRH.reshape(q_BLNH.shape), attn["o"], contract=2), kv


def latent(
  c: ModelConfig, attn: dict, x_BLD, cos_sin: tuple, context: Context, kv, z
) -> tuple[jax.Array, tuple | None]:
  """Multi-head latent attention (arXiv 2405.04434, section 2.1).

  Without a cache keys and values are made of the latent. With one, the latent and the
  shared rotary key are what is cached, and the maps that would make keys and values of
  them are applied to the queries and the result: all heads attend to one key.

  Returns:
    (out_BLD, the cache's arrays).
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
  if kv is None:
    up = layers.linear(latent_BLC, attn["kv_up"])
    k_nope, v_BLNH = jnp.split(up, [m.nope_dim], axis=-1)
    k_rope = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], m.rope_dim))
    k_BLNH = jnp.concatenate([k_nope, k_rope], axis=-1)
    q_BLN1H = jnp.concatenate([q_nope, q_rope], axis=-1)[:, :, :, None]
    mixed_BLN1H, kv = context(q_BLN1H, k_BLNH, v_BLNH, kv, z, scale)
    mixed_BLNH = mixed_BLN1H[:, :, :, 0]
  else:
    k_up, v_up = jnp.split(layers.matrix(attn["kv_up"]), [m.nope_dim], axis=-1)
    q_latent = jnp.einsum("blnh,cnh->blnc", q_nope, k_up)
    q_BL1NH = jnp.concatenate([q_latent, q_rope], axis=-1)[:, :, None]
    k_BL1H = jnp.concatenate([latent_BLC[:, :, None], k_rope], axis=-1)
    mixed_BL1NC, kv = context(q_BL1NH, k_BL1H, None, kv, z, scale)
    mixed_BLNH = jnp.einsum("blnc,cnh->blnh", mixed_BL1NC[:, :, 0], v_up)
  return layers.linear(mixed_BLNH, attn["o"], contract=2), kv


def among_tokens(mask_BLL: jax.Array) -> Context:
  """The tokens of a row attend to one another."""

  def context(q_BLKRH, k_BLKH, v_BLKH, kv, z, scale):
    del z
    k_BKHL, v_BKLH = jnp.moveaxis(k_BLKH, 1, -1), jnp.moveaxis(v_BLKH, 1, 2)
    return layers.attend(q_BLKRH, k_BKHL, v_BKLH, mask_BLL, scale=scale)[0], kv

  return context


def with_cache(c: ModelConfig, cache: Cache, window: int | None) -> Context:
  """Writes the tokens behind each slot's own part, then attends to own and prompt."""

  def values(k_BKHC):
    """Those of latent attention lie in the keys."""
    return jnp.swapaxes(k_BKHC[:, :, : c.latent.kv_rank], -1, -2)

  def context(q_SLKRH, k_SLKH, v_SLKH, kv, z, scale):
    k_ZSKHW, v_ZSKWH = kv
    num_slots, num_new = q_SLKRH.shape[:2]
    slot_S1 = jnp.arange(num_slots)[:, None]
    place_SL = cache.length_S[:, None] + jnp.arange(num_new)
    k_ZSKHW = k_ZSKHW.at[z, slot_S1, :, :, place_SL].set(k_SLKH, mode="drop")
    k_SKHW = k_ZSKHW[z, ..., :window]
    if v_SLKH is None:
      v_SKWH = values(k_SKHW)
    else:
      v_ZSKWH = v_ZSKWH.at[z, slot_S1, :, place_SL].set(v_SLKH, mode="drop")
      v_SKWH = v_ZSKWH[z, :, :, :window]
    mask_SLW = jnp.arange(k_ZSKHW.shape[-1])[:window] <= place_SL[..., None]
    own = layers.attend(q_SLKRH, k_SKHW, v_SKWH, mask_SLW, scale=scale)
    if cache.prompt is None:
      return own[0], (k_ZSKHW, v_ZSKWH)
    prompt = cache.prompt
    length_S1 = prompt.length_Q[prompt.index_S][:, None]
    mask_SP = jnp.arange(prompt.k_ZQKHP.shape[-1]) < length_S1
    k_SKHP = prompt.k_ZQKHP[z, prompt.index_S]
    v_SKPH = values(k_SKHP) if v_SLKH is None else prompt.v_ZQKPH[z, prompt.index_S]
    mask_SLP = jnp.broadcast_to(mask_SP[:, None], (*place_SL.shape, mask_SP.shape[-1]))
    shared = layers.attend(q_SLKRH, k_SKHP, v_SKPH, mask_SLP, scale=scale)
    return layers.join(own, shared), (k_ZSKHW, v_ZSKWH)

  return context
