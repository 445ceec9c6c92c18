"""How a rollout begins: prompts are prefilled once, and each slot gets its first row.

Rows that an earlier rollout has left are fed to their slots again, and go on.

Letters: Q prompts, G samples, B = Q * G rows to make, S slots that make them, P prompt
slots, T completion slots, V vocabulary, Z layers with experts, K experts of a token, J
drafted tokens, L = 1 + J tokens fed to a slot in a step, U queues of N rows.
"""

import jax
import jax.numpy as jnp

from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sampling import logits, stops
from r1jax.sampling.loop_state import (
  COUNTS,
  IDLE,
  Begun,
  DecodeState,
  Plan,
  Prompts,
  last_tokens,
  of_rows,
  placed,
  windows_of,
)
from r1jax.sharding import LOCAL, Partition

_RESUMED = 64  # tokens of begun rows that are fed at a time


def start(
  c: ModelConfig,
  params: dict,
  prompts: Prompts,
  controls: logits.Controls,
  key: jax.Array,
  plan: Plan,
  *,
  stops_YV: jax.Array | None = None,
  begun: Begun | None = None,
  partition: Partition = LOCAL,
) -> tuple[DecodeState, jax.Array | None]:
  """Prefills the prompts and gives each slot its first row; arguments of `generate`.

  Returns:
    (state before the first step, prompt_experts_QPZK or None).
  """
  num_prompts, samples, max_tokens = (
    len(prompts.length_Q),
    plan.samples,
    plan.max_tokens,
  )
  num_rows = num_prompts * samples
  num_slots = num_rows if plan.slots is None else min(plan.slots, num_rows)
  prompts = jax.tree.map(jnp.asarray, prompts)

  shared, routed = prefill(c, params, prompts, plan, partition)
  row_keys_B = jax.vmap(jax.random.fold_in)(
    jax.vmap(jax.random.fold_in, (None, 0))(
      key, jnp.repeat(prompts.problem_Q, samples)
    ),
    jnp.tile(jnp.arange(samples), num_prompts),
  )
  tokens_BT = jnp.zeros((num_rows, max_tokens), jnp.int32)
  logp_BT = jnp.zeros((num_rows, max_tokens), jnp.float32)
  plain_logp_BT = logp_BT if plan.plain_logp else None
  length_B = jnp.zeros((num_rows,), jnp.int32)
  stopped_B = done_B = jnp.zeros((num_rows,), bool)
  if begun is not None:
    tokens_BT, logp_BT, length_B = begun.tokens_BT, begun.logp_BT, begun.length_B
    plain_logp_BT = begun.plain_logp_BT
    stopped_B, done_B = begun.stopped_B, begun.done_B
    given_B = jax.random.wrap_key_data(begun.key_BX)
    row_keys_B = jnp.where(begun.has_key_B, given_B, row_keys_B)

  # The slots of a device work on the prompts that lie there.
  num_queues = partition.size("batch")
  if begun is not None or num_prompts % num_queues or num_slots % num_queues:
    num_queues = 1
  # Begun rows first: only a slot's first row may have tokens already.
  rank_B = jnp.where(done_B, 2, jnp.where(length_B > 0, 0, 1))
  order_UN = jnp.argsort(rank_B.reshape(num_queues, -1), axis=1, stable=True)
  first_U1 = num_rows // num_queues * jnp.arange(num_queues)[:, None]
  queue_UN = (first_U1 + order_UN).astype(jnp.int32)
  queued_U = jnp.sum(~done_B.reshape(num_queues, -1), axis=1)
  slot_N = jnp.arange(num_slots // num_queues)
  row_S = jnp.where(slot_N < queued_U[:, None], queue_UN[:, : slot_N.size], IDLE)
  row_S = row_S.reshape(-1)
  if num_slots == num_rows:
    # Rows that never move make the prompts' part of attention cheaper.
    row_S = jnp.where(done_B, IDLE, jnp.arange(num_rows))

  windows = windows_of(max_tokens) if plan.windows is None else plan.windows
  capacity = max_tokens
  if plan.draft_tokens:
    # Room for drafts of the last token, and for all tokens that `_resumed` feeds.
    capacity = -(-(max_tokens + plan.draft_tokens) // _RESUMED) * _RESUMED
  if partition.platform == "gpu":
    # One array, and so one compiled step: the kernel reads what is live of it. Where
    # products are taken instead they read all, since XLA would copy parts of it.
    capacity = caches.whole_blocks(capacity)
    windows = (capacity,)
  own = caches.empty(
    c,
    num_slots,
    capacity,
    plan.cache or params["embed"].dtype,
    windows=(*windows[:-1], capacity),
    further=plan.draft == "mtp",
    partition=partition,
  )
  if plan.draft_tokens:
    # Drafts are right to different lengths: each slot has its own column.
    own = own.replace(column=jnp.zeros((num_slots,), jnp.int32))
  prompt_experts_QPZK = experts_BTZK = None
  if plan.record_experts:
    places = prompts.tokens_QP.shape[1]
    prompt_experts_QPZK = jnp.moveaxis(routed.experts_ZBLK[:, :, :places], 0, 2)
    shape = (num_rows, max_tokens, *prompt_experts_QPZK.shape[2:])
    experts_BTZK = jnp.full(shape, -1, jnp.int32)
  seen_QV = None
  if plan.penalises:
    seen_QV = logits.seen(prompts.tokens_QP, prompts.length_Q, c.vocab)
  zero = jnp.asarray(0, jnp.int32)
  counts = dict.fromkeys(COUNTS, zero)
  counts["prefill_tokens"] = jnp.sum(prompts.length_Q - 1)
  state = DecodeState(
    cache=own.replace(prompt=shared.replace(queues=num_queues)),
    token_S=last_tokens(prompts)[jnp.maximum(row_S, 0) // samples],
    draft_SJ=jnp.zeros((num_slots, plan.draft_tokens), jnp.int32),
    row_S=row_S,
    queue_UN=queue_UN,
    queued_U=queued_U,
    next_U=jnp.minimum(slot_N.size, queued_U),
    prompts=prompts,
    row_keys_B=row_keys_B,
    stop_state_S=stops.first(of_rows(controls, row_S)),
    seen_QV=seen_QV,
    seen_SV=None if seen_QV is None else seen_QV[jnp.maximum(row_S, 0) // samples],
    columns=zero,
    tokens_BT=tokens_BT,
    logp_BT=logp_BT,
    plain_logp_BT=plain_logp_BT,
    length_B=length_B,
    stopped_B=stopped_B,
    done_B=done_B,
    counts=counts,
    experts_BTZK=experts_BTZK,
  )
  if begun is not None:
    state = _resumed(c, params, state, plan, stops_YV, partition)
  return placed(state, plan), prompt_experts_QPZK


def _resumed(
  c: ModelConfig,
  params: dict,
  s: DecodeState,
  plan: Plan,
  stops_YV: jax.Array | None,
  partition: Partition,
) -> DecodeState:
  """Feeds the slots what their rows have drawn already, but for the last token.

  Rows end in the same column, so that they go on in the same one; with drafts, where
  each slot has a column of its own, they begin in the first.
  """
  row_S = jnp.maximum(s.row_S, 0)
  length_S = jnp.where(s.row_S == IDLE, 0, s.length_B[row_S])
  prompt_S = row_S // plan.samples
  start_S = s.prompts.length_Q[prompt_S] - 1
  last_S1 = last_tokens(s.prompts)[prompt_S][:, None]
  own_ST = s.tokens_BT[row_S]
  num_blocks = -(-jnp.max(length_S) // _RESUMED)
  end = num_blocks * _RESUMED
  before_S = jnp.zeros_like(length_S) if plan.draft_tokens else end - length_S

  def feed(block: jax.Array, cache: caches.Cache) -> caches.Cache:
    column = block * _RESUMED
    index_SL = column - before_S[:, None] + jnp.arange(_RESUMED)
    drawn_SL = jnp.take_along_axis(
      own_ST, jnp.clip(index_SL - 1, 0, own_ST.shape[1] - 1), axis=1
    )
    fed_SL = jnp.where(index_SL <= 0, last_S1, drawn_SL)
    position_SL = start_S[:, None] + jnp.maximum(index_SL, 0)
    here = cache.replace(
      # Below 0 where a row begins later: such tokens attend to nothing of their own.
      length_S=column - before_S,
      column=jnp.broadcast_to(column, cache.column.shape).astype(jnp.int32),
    )
    hidden_SLD, cache, _ = transformer.forward(
      c, params, fed_SL, position_SL, cache=here, partition=partition
    )
    if plan.draft == "mtp":
      next_SL = jnp.take_along_axis(
        own_ST, jnp.clip(index_SL, 0, own_ST.shape[1] - 1), axis=1
      )
      _, cache = transformer.draft_further(
        c,
        params,
        hidden_SLD,
        next_SL,
        position_SL,
        before=here,
        after=cache,
        partition=partition,
      )
    return cache.replace(length_S=length_S)

  cache = jax.lax.fori_loop(0, num_blocks, feed, placed(s, plan).cache)
  place_S1 = jnp.maximum(length_S - 1, 0)[:, None]
  token_S = jnp.take_along_axis(own_ST, place_S1, axis=1)[:, 0]
  stop_state_S = s.stop_state_S
  if stops_YV is not None:

    def read(place: jax.Array, state_S: jax.Array) -> jax.Array:
      after_S = stops.advance(stops_YV, state_S, own_ST[:, place])
      return jnp.where(place < length_S, after_S, state_S)

    stop_state_S = jax.lax.fori_loop(0, jnp.max(length_S), read, stop_state_S)
  return s.replace(
    cache=cache.replace(length_S=length_S),
    token_S=jnp.where(length_S > 0, token_S, s.token_S),
    stop_state_S=stop_state_S,
    columns=end,
  )


def prefill(
  c: ModelConfig, params: dict, prompts: Prompts, plan: Plan, partition: Partition
) -> tuple[caches.PromptCache, transformer.Routed | None]:
  """Keys and values of every prompt token but the last, once per prompt."""
  tokens_QP = prompts.tokens_QP
  num_prompts, capacity = tokens_QP.shape
  if partition.platform == "gpu":
    rest = caches.whole_blocks(capacity) - capacity
    tokens_QP, capacity = jnp.pad(tokens_QP, ((0, 0), (0, rest))), capacity + rest
  further = plan.draft == "mtp"
  empty = caches.empty(
    c,
    num_prompts,
    capacity,
    plan.cache or params["embed"].dtype,
    further=further,
    partition=partition,
  ).replace(filled_at_once=True)
  positions_QP = jnp.broadcast_to(jnp.arange(capacity), tokens_QP.shape)
  hidden_QPD, cache, routed = transformer.forward(
    c, params, tokens_QP, positions_QP, cache=empty, partition=partition
  )
  if further:
    _, cache = transformer.draft_further(
      c,
      params,
      hidden_QPD,
      jnp.roll(tokens_QP, -1, axis=1),
      positions_QP,
      before=empty,
      after=cache,
      partition=partition,
    )
  shared = caches.PromptCache(
    keys=tuple(k_QKHP for (k_QKHP,) in cache.keys),
    values=tuple(own[0] if own else None for own in cache.values),
    length_Q=prompts.length_Q - 1,
    row_S=jnp.zeros((0,), jnp.int32),
    samples=plan.samples,
  )
  return shared, routed
