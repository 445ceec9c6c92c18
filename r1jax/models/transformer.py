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
from r1jax.models import attention, kernels, layers, moe, parameters, quantized, rope
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.quantized import Quantized
from r1jax.sharding import LOCAL, Partition

_KEEP = jax.checkpoint_policies
# What a layer keeps for its backward pass: everything; products with its matrices, and
# of long rows what attention makes; nothing.
REMAT = {
  "none": None,
  "dots": _KEEP.save_from_both_policies(
    _KEEP.dots_with_no_batch_dims_saveable, kernels.keeps
  ),
  "full": _KEEP.nothing_saveable,
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
  parents_BL: jax.Array | None = None,
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
    parents_BL: and to the segment that theirs continues, see `types.TokenRows`.
    cache: the L tokens are appended to each slot's own part and attend to it and to the
      slot's prompt. Layers are not scanned over then: a slice of stacked parameters
      would be copied in every step, see `parameters.unstacked`.
    window: attend to the first `window` own columns only, one of the windows that the
      cache was made with; the caller knows that no other is in use after this call.
      None means all of them.
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
  x_BLD = _embedded(params, tokens_BL, partition)
  x_BLD = partition.constrain(x_BLD, ("batch", None, None))
  context = attention.among_tokens(segments_BL, parents_BL, partition)
  if cache is not None:
    context = _with_cache(c, cache, x_BLD, window, partition)
  layer = _layer(
    c, positions_BL, segments_BL, parents_BL, context, balance, remat, partition
  )
  carry = (x_BLD, _no_balance(c, balance, tokens_BL))
  experts_ZBLK, written = None, []
  for name, (first, size) in parameters.stacks(c).items():
    if name == "mtp":
      continue
    replayed = None if name == "dense" else replayed_ZBLK
    if cache is None:
      inputs = (params[name], replayed, None)
      carry, (experts_ZBLK, _) = jax.lax.scan(
        layer, carry, inputs, unroll=_unrolls(partition)
      )
      continue
    went = []
    for z in range(size):
      p = parameters.layer_of(params[name], z)
      carry, (experts_BLK, held) = layer(carry, (p, None, _held(cache, first + z)))
      written.append(held)
      went.append(experts_BLK)
    experts_ZBLK = None if went[0] is None else jnp.stack(went)
  x_BLD, balance_BL = carry
  if cache is not None:
    num_new = tokens_BL.shape[1]
    cache = cache.replace(
      keys=(*[keys for keys, _ in written], *cache.keys[len(written) :]),
      values=(*[values for _, values in written], *cache.values[len(written) :]),
      length_S=cache.length_S + num_new,
      column=(cache.column + num_new) % cache.num_columns,
      filled_at_once=False,
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
  parents_BL: jax.Array | None = None,
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
  p = parameters.layer_of(params["mtp"], 0)
  tokens_BL, positions_BL = jnp.asarray(tokens_BL), jnp.asarray(positions_BL)
  next_BL = jnp.roll(tokens_BL, -1, axis=1)
  x_BLD = _with_next(c, params, p, hidden_BLD, next_BL, partition)
  context = attention.among_tokens(segments_BL, parents_BL, partition)
  layer = _layer(
    c, positions_BL, segments_BL, parents_BL, context, balance, remat, partition
  )
  carry = (x_BLD, _no_balance(c, balance, tokens_BL))
  (x_BLD, balance_BL), (experts_BLK, _) = layer(carry, (p, None, None))
  routed = None
  if c.experts is not None:
    routed = Routed(experts_BLK[None], balance_BL)
  return layers.rms_norm(x_BLD, p["norm"], c.norm_eps), routed


def draft_further(
  c: ModelConfig,
  params: dict,
  hidden_BLD: jax.Array,
  next_BL: jax.Array,
  positions_BL: jax.Array,
  *,
  before: Cache,
  after: Cache,
  window: int | None = None,
  partition: Partition = LOCAL,
) -> tuple[jax.Array, Cache]:
  """`predict_further` with a cache, which holds the module as one more layer.

  Args:
    next_BL: the token behind each of those that `forward` was given.
    before, after: what `forward` was given and has returned.

  Returns:
    (hidden_BLD, `after` with the module's keys and values in it).
  """
  p = parameters.layer_of(params["mtp"], 0)
  x_BLD = _with_next(c, params, p, hidden_BLD, next_BL, partition)
  context = _with_cache(c, before, x_BLD, window, partition)
  layer = _layer(c, positions_BL, None, None, context, False, "none", partition)
  (x_BLD, _), (_, (keys, values)) = layer((x_BLD, None), (p, None, _held(before, -1)))
  cache = after.replace(
    keys=(*after.keys[:-1], keys), values=(*after.values[:-1], values)
  )
  return layers.rms_norm(x_BLD, p["norm"], c.norm_eps), cache


def _embedded(params: dict, tokens_BL: jax.Array, partition: Partition) -> jax.Array:
  # Looked up in slices of the width, every device would gather the rows of all.
  def rows(embed: jax.Array) -> jax.Array:
    return partition.constrain(embed, ("vocab", None))[tokens_BL]

  return layers.matrix(jax.tree.map(rows, params["embed"]))


def _with_next(
  c: ModelConfig,
  params: dict,
  p: dict,
  hidden_BLD: jax.Array,
  next_BL: jax.Array,
  partition: Partition,
) -> jax.Array:
  """What goes into the MTP module's layer."""
  next_BLD = _embedded(params, next_BL, partition).astype(hidden_BLD.dtype)
  both = (
    layers.rms_norm(next_BLD, p["embed_norm"], c.norm_eps),
    layers.rms_norm(hidden_BLD, p["hidden_norm"], c.norm_eps),
  )
  x_BLD = layers.linear(jnp.concatenate(both, axis=-1), p["proj"])
  return partition.constrain(x_BLD, ("batch", None, None))


def _unrolls(partition: Partition) -> bool:
  """Whether layers stand one behind another in the compiled program.

  On a GPU a loop over them copies what every layer keeps for the backward pass into a
  stack and out of it again; without it, 28 layers compiled in half a minute. On several
  GPUs a loop gathers the weights of one layer at a time.
  """
  is_single = partition.mesh is None or partition.mesh.size == 1
  return partition.platform == "gpu" and is_single


def _layer(
  c: ModelConfig,
  positions_BL: jax.Array,
  segments_BL: jax.Array | None,
  parents_BL: jax.Array | None,
  context: attention.Context,
  balance: bool,
  remat: str,
  partition: Partition,
) -> Callable:
  """One layer as the body of a scan: (carry, inputs) -> (carry, outputs).

  The carry is (x_BLD, balance_BL), the inputs (the layer's parameters, experts to go
  through or None, its part of the cache or None), the outputs (experts_BLK or None, its
  part of the cache).
  """
  one_of(remat, REMAT, key="config.training.remat")
  cos_sin = rope.rotary(c, positions_BL)
  attend = attention.grouped_query if c.latent is None else attention.latent

  def layer(carry, inputs):
    x_BLD, balance_BL = carry
    p, replayed_BLK, held = inputs
    normed_BLD = layers.rms_norm(x_BLD, p["attn_norm"], c.norm_eps)
    out_BLD, held = attend(c, p["attn"], normed_BLD, cos_sin, context, held)
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
        balance_BL += moe.balance(
          scores_BLE, c.experts.per_token, segments_BL, parents_BL
        )
    x_BLD = partition.constrain(x_BLD, ("batch", None, None))
    return (x_BLD, balance_BL), (experts_BLK, held)

  return layer if remat == "none" else jax.checkpoint(layer, policy=REMAT[remat])


def _with_cache(
  c: ModelConfig,
  cache: Cache,
  x_BLD: jax.Array,
  window: int | None,
  partition: Partition,
) -> attention.Context:
  if cache.filled_at_once:
    return attention.filling(cache, partition)
  return attention.with_cache(c, cache, x_BLD.shape[1], x_BLD.dtype, window, partition)


def _held(cache: Cache, layer: int) -> tuple | None:
  """What a cache has of a layer, see `attention.Context`."""
  if cache.filled_at_once:
    return None
  own = (cache.keys[layer], cache.values[layer])
  if cache.prompt is None:
    return own
  return *own, cache.prompt.keys[layer], cache.prompt.values[layer]


def _no_balance(c: ModelConfig, balance: bool, tokens_BL: jax.Array):
  if not balance or c.experts is None:
    return None
  return jnp.zeros(tokens_BL.shape, jnp.float32)


def unembed(params: dict, hidden: jax.Array) -> jax.Array:
  """Float32 logits [..., V] of hidden states [..., D]."""
  axes, head = ("dv", params["head"]) if "head" in params else ("vd", params["embed"])
  logits = jnp.einsum(
    f"...d,{axes}->...v",
    hidden,
    quantized.values(head, hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return logits * head.scale.reshape(-1) if isinstance(head, Quantized) else logits
