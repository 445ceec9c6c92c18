"""The decoder: one forward for everything.

Letters: B rows (or slots), L tokens, Z layers, D width, V vocabulary, E experts,
K experts of a token.

Scoring, training, prefill and decode call the same `forward`: without a cache it
attends among the tokens it is given, with one to what the cache holds and to them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.errors import one_of
from r1jax.models import attention, layers, moe, parameters, rope
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.sharding import LOCAL, Partition

# What a layer keeps for its backward pass: everything, matrix products only, nothing.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Routed:
  """Where tokens went in the layers with experts.

  Attributes:
    experts_ZBLK: int32, the experts of each token.
    balance_BL: float32, see `moe.balance`, summed over layers; None where not asked.
  """

  experts_ZBLK: jax.Array
  balance_BL: jax.Array | None


def forward(
  c: ModelConfig,
  params: dict,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  *,
  segments_BL: jax.Array | None = None,
  cache: Cache | None = None,
  window: int | None = None,
  replayed_ZBLK: jax.Array | None = None,
  balance: bool = False,
  remat: str = "none",
  partition: Partition = LOCAL,
) -> tuple[jax.Array, Cache | None, Routed | None]:
  """Hidden states after the final norm, in the parameters' dtype.

  Args:
    positions_BL: int32, position of each token in its own sequence.
    segments_BL: without a cache, tokens attend only inside their segment.
    cache: the L tokens are appended to each slot's own part and attend to it and to the
      slot's prompt.
    window: attend over the first `window` own slots only; the caller knows that no live
      slot is longer after this call. None means all of them.
    replayed_ZBLK: int32, experts that tokens go through whatever their scores; -1
      chooses.
    balance: measure how evenly each sequence uses the experts.
    remat: what is kept for the backward pass, a name in REMAT.
    partition: pins activations to the mesh.

  Returns:
    (hidden_BLD, the cache with the tokens in it or None, `Routed` or None where the
    model has no experts).
  """
  tokens_BL, positions_BL = jnp.asarray(tokens_BL), jnp.asarray(positions_BL)
  # Looked up in slices of the width, every device would gather the rows of all.
  embed_VD = partition.constrain(params["embed"], ("vocab", None))
  x_BLD = partition.constrain(embed_VD[tokens_BL], ("batch", None, None))
  if cache is None:
    kv, context = None, attention.among_tokens(_causal(tokens_BL, segments_BL))
  else:
    kv = (cache.k_ZSKHW, cache.v_ZSKWH)
    context = attention.with_cache(c, cache, window)
  layer = _layer(c, positions_BL, segments_BL, context, balance, remat, partition)
  carry = (x_BLD, kv, 0, _no_balance(c, balance, tokens_BL))
  experts_ZBLK = None
  for name in parameters.stacks(c):
    if name == "mtp":
      continue
    replayed = None if name == "dense" else replayed_ZBLK
    carry, experts_ZBLK = jax.lax.scan(layer, carry, (params[name], replayed))
  x_BLD, kv, _, balance_BL = carry
  if cache is not None:
    cache = cache.replace(
      k_ZSKHW=kv[0], v_ZSKWH=kv[1], length_S=cache.length_S + tokens_BL.shape[1]
    )
  routed = None if c.experts is None else Routed(experts_ZBLK, balance_BL)
  return layers.rms_norm(x_BLD, params["final_norm"], c.norm_eps), cache, routed


def predict_further(
  c: ModelConfig,
  params: dict,
  hidden_BLD: jax.Array,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  *,
  segments_BL: jax.Array | None = None,
  balance: bool = False,
  remat: str = "none",
  partition: Partition = LOCAL,
) -> tuple[jax.Array, Routed | None]:
  """Hidden states of the MTP module: index l predicts token l + 2.

  DeepSeek-V3 (arXiv 2412.19437) eq. 21 to 24. Departs, as the released weights do: the
  projection takes the embedding first, and the states are those behind the final norm.
  (vLLM zeroes the embedding beside a sequence's first state; here it stays.)

  Args:
    hidden_BLD: what `forward` returns for the same tokens.

  Returns:
    (hidden_BLD, `Routed` or None).
  """
  p = jax.tree.map(lambda leaf: leaf[0], params["mtp"])
  tokens_BL, positions_BL = jnp.asarray(tokens_BL), jnp.asarray(positions_BL)
  embed_VD = partition.constrain(params["embed"], ("vocab", None))
  next_BLD = embed_VD[jnp.roll(tokens_BL, -1, axis=1)].astype(hidden_BLD.dtype)
  both = (
    layers.rms_norm(next_BLD, p["embed_norm"], c.norm_eps),
    layers.rms_norm(hidden_BLD, p["hidden_norm"], c.norm_eps),
  )
  x_BLD = layers.linear(jnp.concatenate(both, axis=-1), p["proj"])
  x_BLD = partition.constrain(x_BLD, ("batch", None, None))
  context = attention.among_tokens(_causal(tokens_BL, segments_BL))
  layer = _layer(c, positions_BL, segments_BL, context, balance, remat, partition)
  carry = (x_BLD, None, 0, _no_balance(c, balance, tokens_BL))
  (x_BLD, _, _, balance_BL), experts_BLK = layer(carry, (p, None))
  routed = None
  if c.experts is not None:
    routed = Routed(experts_BLK[None], balance_BL)
  return layers.rms_norm(x_BLD, p["norm"], c.norm_eps), routed


def _layer(
  c: ModelConfig,
  positions_BL: jax.Array,
  segments_BL: jax.Array | None,
  context: attention.Context,
  balance: bool,
  remat: str,
  partition: Partition,
) -> Callable:
  """One layer as the body of a scan: (carry, inputs) -> (carry, experts_BLK or None).

  The carry is (x_BLD, the cache's arrays, number of the layer, balance_BL), the inputs
  (the layer's parameters, experts to go through or None).
  """
  one_of(remat, REMAT, key="config.training.remat")
  cos_sin = rope.rotary(c, positions_BL)
  attend = attention.grouped_query if c.latent is None else attention.latent

  def layer(carry, inputs):
    x_BLD, kv, z, balance_BL = carry
    p, replayed_BLK = inputs
    normed_BLD = layers.rms_norm(x_BLD, p["attn_norm"], c.norm_eps)
    out_BLD, kv = attend(c, p["attn"], normed_BLD, cos_sin, context, kv, z)
    x_BLD += out_BLD
    normed_BLD = layers.rms_norm(x_BLD, p["mlp_norm"], c.norm_eps)
    experts_BLK = None
    if "mlp" in p:
      x_BLD += layers.swiglu(normed_BLD, p["mlp"])
    else:
      out_BLD, experts_BLK, scores_BLE = moe.mixture(
        normed_BLD, p["moe"], c.experts, partition, replayed_BLK
      )
      x_BLD += out_BLD
      if balance:
        balance_BL += moe.balance(scores_BLE, c.experts.per_token, segments_BL)
    x_BLD = partition.constrain(x_BLD, ("batch", None, None))
    return (x_BLD, kv, z + 1, balance_BL), experts_BLK

  return layer if remat == "none" else jax.checkpoint(layer, policy=REMAT[remat])


def _causal(tokens_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
  """What each token attends to among those of its row, [B or 1, L, L]."""
  length = tokens_BL.shape[1]
  mask_BLL = jnp.tril(jnp.ones((1, length, length), bool))
  if segments_BL is None:
    return mask_BLL
  return mask_BLL & (segments_BL[:, :, None] == segments_BL[:, None, :])


def _no_balance(c: ModelConfig, balance: bool, tokens_BL: jax.Array):
  if not balance or c.experts is None:
    return None
  return jnp.zeros(tokens_BL.shape, jnp.float32)


def head_matrix(params: dict) -> jax.Array:
  """The output projection as [D, V], tied or free."""
  return params["head"] if "head" in params else params["embed"].T


def unembed(params: dict, hidden: jax.Array) -> jax.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  return jnp.einsum(
    "...d,dv->...v", hidden, head_matrix(params), preferred_element_type=jnp.float32
  )
