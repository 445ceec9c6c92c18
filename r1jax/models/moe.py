"""A mixture of experts: which experts a token goes through, and going through them.

Letters: B rows, L tokens in a row, T tokens, D width, E experts, K experts of a token,
P = T * K pairs of a token and an expert, F hidden width of an expert, C pairs that a
device sends to another at a time.

No token is dropped, however uneven the load: pairs are sorted by expert and multiplied
group by group. Over the mesh axis `ep` each device holds some of the experts, and pairs
travel to them and back.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from r1jax.models import grouped, layers
from r1jax.models.config import Experts
from r1jax.models.quantized import Quantized
from r1jax.sharding import Partition

_SLACK = 2  # times an even load: what devices exchange at a time


def route(
  x_BLD: jax.Array, moe: dict, e: Experts, replayed_BLK: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Chooses experts (DeepSeek-V3, arXiv 2412.19437, eq. 13 to 16), all in float32.

  Args:
    replayed_BLK: experts chosen before, as the sampler did; -1 chooses anew.

  Returns:
    (experts_BLK, gates_BLK, scores_BLE): gates are made of the scores as they are now,
    which are those before bias and choice.
  """
  logits_BLE = jnp.einsum(
    "bld,de->ble",
    x_BLD.astype(jnp.float32),
    layers.matrix(moe["router"]).astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,  # a TPU would round to bfloat16
  )
  softmax = e.scores == "softmax"
  scores_BLE = jax.nn.softmax(logits_BLE) if softmax else jax.nn.sigmoid(logits_BLE)
  experts_BLK = choose(scores_BLE, moe.get("bias"), e)
  if replayed_BLK is not None:
    experts_BLK = jnp.where(replayed_BLK < 0, experts_BLK, replayed_BLK)
  gates_BLK = jnp.take_along_axis(scores_BLE, experts_BLK, axis=-1)
  if e.normalise:
    gates_BLK = gates_BLK / (gates_BLK.sum(axis=-1, keepdims=True) + 1e-20)
  return experts_BLK, gates_BLK * e.scale, scores_BLE


def choose(scores: jax.Array, bias: jax.Array | None, e: Experts) -> jax.Array:
  """The experts [..., K] with the best biased scores [..., E] of the best groups."""
  biased = jax.lax.stop_gradient(scores)
  if bias is not None:
    biased = biased + bias.astype(jnp.float32)
  if e.groups > 1:
    by_group = biased.reshape(*biased.shape[:-1], e.groups, -1)
    best = jax.lax.top_k(by_group, 2 if e.group_score == "top2" else 1)[0]
    kept = jax.lax.top_k(best.sum(axis=-1), e.kept_groups)[1]
    is_kept = (kept[..., None] == jnp.arange(e.groups)).any(axis=-2)
    # Not 0, which a biased score of a kept group may be below.
    by_group = jnp.where(is_kept[..., None], by_group, -jnp.inf)
    biased = by_group.reshape(biased.shape)
  return jax.lax.top_k(biased, e.per_token)[1]


def mixture(
  x_BLD: jax.Array,
  moe: dict,
  e: Experts,
  partition: Partition,
  replayed_BLK: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Shared experts plus the gated sum of each token's own.

  Returns:
    (out_BLD, experts_BLK, scores_BLE), see `route`.
  """
  experts_BLK, gates_BLK, scores_BLE = route(x_BLD, moe, e, replayed_BLK)
  out_BLD = _spread(x_BLD, moe["experts"], experts_BLK, gates_BLK, partition)
  if e.shared:
    out_BLD = out_BLD + layers.swiglu(x_BLD, moe["shared"])
  return out_BLD, experts_BLK, scores_BLE


def _spread(x_BLD, experts: dict, experts_BLK, gates_BLK, partition: Partition):
  """Gated sums, each device taking its rows."""
  if partition.mesh is None:
    return _tokens(x_BLD, experts_BLK, gates_BLK, experts, shards=1)
  shards = partition.size("expert")
  rows = x_BLD.shape[0]
  # A batch of fewer rows than devices is filled up.
  missing = -rows % partition.size("batch")

  def filled(array):
    return jnp.pad(array, ((0, missing), (0, 0), (0, 0)))

  def on_device(x_BLD, experts_BLK, gates_BLK, experts):
    out_BLD = _tokens(x_BLD, experts_BLK, gates_BLK, experts, shards=shards)
    return jax.lax.psum(out_BLD, partition.rules["ffw"])

  by_row = partition.pspec(("batch", None, None))
  up = partition.pspec(("expert", None, "ffw"))
  down = partition.pspec(("expert", "ffw", None))
  specs = {
    name: _specs_of(experts[name], spec)
    for name, spec in (("gate", up), ("up", up), ("down", down))
  }
  out_BLD = jax.shard_map(
    on_device,
    mesh=partition.mesh,
    in_specs=(by_row, by_row, by_row, specs),
    out_specs=by_row,
    check_vma=False,
  )(filled(x_BLD), filled(experts_BLK), filled(gates_BLK), experts)
  return out_BLD[:rows]


def _specs_of(w: layers.Matrix, spec: PartitionSpec):
  """Specs of a matrix of experts, of its scales, and of its low-rank update."""
  expert, inner, outer = spec
  if isinstance(w, Quantized):
    return w.replace(values=spec, scale=PartitionSpec(expert, None, outer))
  if not isinstance(w, layers.Adapted):
    return spec
  return w.replace(
    base=_specs_of(w.base, spec),
    a=PartitionSpec(expert, inner, None),
    b=PartitionSpec(expert, None, outer),
  )


def _tokens(x_BLD, experts_BLK, gates_BLK, experts: dict, *, shards: int):
  """Gated sums of a device's tokens; pairs go to the experts' devices and back."""
  per_token = experts_BLK.shape[-1]
  x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
  expert_P = experts_BLK.reshape(-1)
  x_PD = jnp.repeat(x_TD, per_token, axis=0)
  held = jax.tree.leaves(experts)[0].shape[0]
  if shards == 1:
    out_PD = _through(x_PD, expert_P, experts, held)
  else:
    out_PD = _exchange(x_PD, expert_P, experts, held, shards)
  gated_PD = out_PD.astype(jnp.float32) * gates_BLK.reshape(-1, 1)
  out_TD = gated_PD.reshape(-1, per_token, out_PD.shape[-1]).sum(axis=1)
  return out_TD.astype(x_BLD.dtype).reshape(x_BLD.shape)


def _through(x_PD, expert_P, experts: dict, held: int):
  """Each row through its expert, 0 where the expert's number is `held` or above."""
  order_P = jnp.argsort(expert_P)
  sizes_E = jnp.bincount(expert_P, length=held)
  sorted_PD = layers.swiglu(
    x_PD[order_P], experts, lambda x, w: grouped.product(x, w, sizes_E)
  )
  return jnp.zeros_like(sorted_PD).at[order_P].set(sorted_PD, unique_indices=True)


def _exchange(x_PD, expert_P, experts: dict, held: int, shards: int):
  """`_through`, with the experts of a number spread over the mesh axis `ep`.

  Devices exchange buffers of a fixed size, twice an even load, for as many rounds as
  the fullest pair of devices needs: one, unless the load is very uneven. Rounds that
  nobody needs are skipped.
  """
  num_pairs = x_PD.shape[0]
  room = min(num_pairs, _SLACK * math.ceil(num_pairs / shards))
  device_P = expert_P // held
  # The place of each pair among those that go to the same device.
  same_PX = device_P[:, None] == jnp.arange(shards)
  rank_P = jnp.take_along_axis(
    jnp.cumsum(same_PX, axis=0) - 1, device_P[:, None], axis=1
  )[:, 0]
  fullest = jax.lax.pmax(jnp.max(rank_P), "ep") + 1

  def there_and_back(array_XC):
    return jax.lax.all_to_all(array_XC, "ep", split_axis=0, concat_axis=0)

  @jax.checkpoint
  def travel(round_):
    place_P = rank_P - round_ * room
    now_P = (place_P >= 0) & (place_P < room)
    to_P = jnp.where(now_P, device_P, shards)  # out of range: dropped
    sent_XCD = jnp.zeros((shards, room, x_PD.shape[1]), x_PD.dtype)
    sent_XCD = sent_XCD.at[to_P, place_P].set(x_PD, mode="drop")
    # What is not filled asks for an expert that there is not.
    number_XC = jnp.full((shards, room), held, jnp.int32)
    number_XC = number_XC.at[to_P, place_P].set(expert_P % held, mode="drop")
    came_XCD, number_XC = there_and_back(sent_XCD), there_and_back(number_XC)
    done = _through(
      came_XCD.reshape(-1, x_PD.shape[1]), number_XC.reshape(-1), experts, held
    )
    back_XCD = there_and_back(done.reshape(sent_XCD.shape))
    own_PD = back_XCD[device_P, jnp.clip(place_P, 0, room - 1)]
    return jnp.where(now_P[:, None], own_PD, 0)

  out_PD = jnp.zeros_like(x_PD)
  for round_ in range(math.ceil(num_pairs / room)):
    out_PD += jax.lax.cond(
      round_ * room < fullest, travel, lambda _: jnp.zeros_like(x_PD), round_
    )
  return out_PD


def balance(
  scores_BLE: jax.Array,
  per_token: int,
  segments_BL: jax.Array | None,
  parents_BL: jax.Array | None = None,
) -> jax.Array:
  """[B, L] of each token's sequence: sum_i f_i P_i, 1 where the load is even.

  DeepSeek-V3 (arXiv 2412.19437) eq. 17 to 20, without the factor alpha: f counts the
  experts with the best scores, before bias and groups. A segment that continues another
  is one sequence with it, see `types.TokenRows`.
  """
  rows, length, count = scores_BLE.shape
  best_BLK = jax.lax.top_k(jax.lax.stop_gradient(scores_BLE), per_token)[1]
  chosen_BLE = (best_BLK[..., None] == jnp.arange(count)).sum(axis=-2)
  share_BLE = scores_BLE / scores_BLE.sum(axis=-1, keepdims=True)

  def numbered(segments_BL):
    number_BL = jnp.arange(rows)[:, None] * (length + 1) + segments_BL
    return jnp.broadcast_to(number_BL, (rows, length)).reshape(-1)

  own_T = numbered(0 if segments_BL is None else segments_BL)
  parent_T = own_T if parents_BL is None else numbered(parents_BL)

  def sums(values_TX):
    """Of each token's sequence."""
    of_segment = jax.ops.segment_sum(values_TX, own_T, rows * (length + 1))
    before_TX = jnp.where((parent_T != own_T)[:, None], of_segment[parent_T], 0.0)
    return of_segment[own_T] + before_TX

  tokens_T1 = sums(jnp.ones((rows * length, 1), jnp.float32))
  f_TE = sums(chosen_BLE.reshape(-1, count).astype(jnp.float32)) / tokens_T1
  p_TE = sums(share_BLE.reshape(-1, count)) / tokens_T1
  of_sequence_T = (f_TE * p_TE).sum(axis=-1) * (count / per_token)
  return of_sequence_T.reshape(rows, length)


def load(experts_ZBLK: jax.Array, valid_BL: jax.Array, count: int) -> jax.Array:
  """float32 [Z, E]: tokens that each expert of each layer got."""

  def one(experts_BLK):
    weight_BLK = jnp.broadcast_to(valid_BL[..., None], experts_BLK.shape)
    return jnp.zeros(count, jnp.float32).at[experts_BLK].add(weight_BLK)

  return jax.vmap(one)(experts_ZBLK)


def updated_bias(bias_ZE: jax.Array, load_ZE: jax.Array, rate: float) -> jax.Array:
  """Auxiliary-loss-free balancing: overloaded experts down, the others up.

  arXiv 2408.15664, algorithm 1; DeepSeek-V3 section 2.1.2.
  """
  mean_Z1 = load_ZE.mean(axis=-1, keepdims=True)
  return bias_ZE + (rate * jnp.sign(mean_Z1 - load_ZE)).astype(bias_ZE.dtype)
