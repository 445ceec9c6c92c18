"""The decoder: parameters described before they exist, and one forward for everything.

Letters: B rows (or slots), L tokens, Z depth, D width, N query heads, K kv heads,
R = N / K, H head width, F ffw width, V vocabulary, W own cache slots, P prompt slots.

Scoring, training, prefill and decode call the same `forward`: without a cache it
attends among the tokens it is given, with one to what the cache holds and to them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.errors import one_of
from r1jax.models import layers
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig

# What a layer keeps for its backward pass: everything, matrix products only, nothing.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def forward(
  c: ModelConfig,
  params: dict,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  *,
  segments_BL: jax.Array | None = None,
  cache: Cache | None = None,
  window: int | None = None,
  remat: str = "none",
  constrain: Callable = sharding.unsharded,
) -> tuple[jax.Array, Cache | None]:
  """Hidden states after the final norm, in the parameters' dtype.

  Args:
    positions_BL: int32, position of each token in its own sequence.
    segments_BL: without a cache, tokens attend only inside their segment.
    cache: the L tokens are appended to each slot's own part and attend to it and to the
      slot's prompt.
    window: attend over the first `window` own slots only; the caller knows that no live
      slot is longer after this call. None means all of them.
    remat: what is kept for the backward pass, a name in REMAT.
    constrain: (array, logical axes) -> array, pins activations to the mesh.

  Returns:
    (hidden_BLD, the cache with the tokens in it or None).
  """
  one_of(remat, REMAT, key="config.training.remat")
  tokens_BL, positions_BL = jnp.asarray(tokens_BL), jnp.asarray(positions_BL)
  cos_sin = layers.rotary(positions_BL, c.head_dim, c.rope_base)
  # Looked up in slices of the width, every device would gather the rows of all.
  embed_VD = constrain(params["embed"], ("vocab", None))
  x_BLD = constrain(embed_VD[tokens_BL], ("batch", None, None))
  if cache is None:
    length = tokens_BL.shape[1]
    mask_BLL = jnp.tril(jnp.ones((1, length, length), bool))
    if segments_BL is not None:
      same = segments_BL[:, :, None] == segments_BL[:, None, :]
      mask_BLL = mask_BLL & same
    attention = functools.partial(_attend_tokens, mask_BLL=mask_BLL)
  else:
    attention = functools.partial(_attend_cache, cache=cache, window=window)

  def layer(carry, layer_params):
    x_BLD, kv, z = carry
    attn = layer_params["attn"]
    normed_BLD = layers.rms_norm(x_BLD, layer_params["attn_norm"], c.norm_eps)
    q_BLNH = layers.rotate(layers.linear(normed_BLD, attn["q"]), cos_sin)
    k_BLKH = layers.rotate(layers.linear(normed_BLD, attn["k"]), cos_sin)
    v_BLKH = layers.linear(normed_BLD, attn["v"])
    q_BLKRH = q_BLNH.reshape(*q_BLNH.shape[:2], c.kv_heads, -1, c.head_dim)
    mixed_BLKRH, kv = attention(q_BLKRH, k_BLKH, v_BLKH, kv, z)
    x_BLD += layers.linear(mixed_BLKRH.reshape(q_BLNH.shape), attn["o"], contract=2)
    normed_BLD = layers.rms_norm(x_BLD, layer_params["mlp_norm"], c.norm_eps)
    x_BLD += layers.swiglu(normed_BLD, layer_params["mlp"])
    return (constrain(x_BLD, ("batch", None, None)), kv, z + 1), None

  if remat != "none":
    layer = jax.checkpoint(layer, policy=REMAT[remat])
  kv = None if cache is None else (cache.k_ZSKHW, cache.v_ZSKWH)
  (x_BLD, kv, _), _ = jax.lax.scan(layer, (x_BLD, kv, 0), params["layers"])
  if cache is not None:
    cache = cache.replace(
      k_ZSKHW=kv[0], v_ZSKWH=kv[1], length_S=cache.length_S + tokens_BL.shape[1]
    )
  return layers.rms_norm(x_BLD, params["final_norm"], c.norm_eps), cache


def _attend_tokens(q_BLKRH, k_BLKH, v_BLKH, kv, z, *, mask_BLL):
  """Attention among the tokens of a row."""
  del z
  k_BKHL, v_BKLH = jnp.moveaxis(k_BLKH, 1, -1), jnp.moveaxis(v_BLKH, 1, 2)
  return layers.attend(q_BLKRH, k_BKHL, v_BKLH, mask_BLL)[0], kv


def _attend_cache(q_SLKRH, k_SLKH, v_SLKH, kv, z, *, cache: Cache, window: int | None):
  """Writes the tokens behind each slot's own part, then attends to own and prompt."""
  k_ZSKHW, v_ZSKWH = kv
  num_slots, num_new = q_SLKRH.shape[:2]
  slot_S1 = jnp.arange(num_slots)[:, None]
  place_SL = cache.length_S[:, None] + jnp.arange(num_new)
  k_ZSKHW = k_ZSKHW.at[z, slot_S1, :, :, place_SL].set(k_SLKH, mode="drop")
  v_ZSKWH = v_ZSKWH.at[z, slot_S1, :, place_SL].set(v_SLKH, mode="drop")
  mask_SLW = jnp.arange(k_ZSKHW.shape[-1])[:window] <= place_SL[..., None]
  own = layers.attend(
    q_SLKRH, k_ZSKHW[z, ..., :window], v_ZSKWH[z, :, :, :window], mask_SLW
  )
  if cache.prompt is None:
    return own[0], (k_ZSKHW, v_ZSKWH)
  prompt = cache.prompt
  length_S1 = prompt.length_Q[prompt.index_S][:, None]
  mask_SP = jnp.arange(prompt.k_ZQKHP.shape[-1]) < length_S1
  shared = layers.attend(
    q_SLKRH,
    prompt.k_ZQKHP[z, prompt.index_S],
    prompt.v_ZQKPH[z, prompt.index_S],
    jnp.broadcast_to(mask_SP[:, None], (*place_SL.shape, mask_SP.shape[-1])),
  )
  return layers.join(own, shared), (k_ZSKHW, v_ZSKWH)


def head_matrix(params: dict) -> jax.Array:
  """The output projection as [D, V], tied or free."""
  return params["head"] if "head" in params else params["embed"].T


def unembed(params: dict, hidden: jax.Array) -> jax.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  return jnp.einsum(
    "...d,dv->...v", hidden, head_matrix(params), preferred_element_type=jnp.float32
  )
