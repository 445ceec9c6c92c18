"""The rollout: prompts prefilled once, one compiled loop that decodes and refills.

`generate` is the whole of it; `start` and `advance` are its two halves, for a host that
looks at the tokens while they come.

Letters: Q prompts, G samples, B = Q * G rows to make, S slots that make them, P prompt
slots, T completion slots, V vocabulary, Z layers with experts, K experts of a token, J
drafted tokens, L = 1 + J tokens fed to a slot in a step, U queues of N rows.

A slot continues one row; when that ends it takes the next one of the queue without
leaving the loop. Its first step feeds the prompt's last token, so a row needs nothing
but the shared prompt cache to start. Every draw is a function of (key, problem, sample,
position): slots, queue order and batch mates change nothing.

Drafted tokens change nothing either. Every token is drawn where it stands, by its own
uniform, from logits that saw the draft before it; the draws count as far as the draft
was what they drew. For a draft of tokens, not of distributions, no rule accepts more.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import trees
from r1jax.errors import one_of
from r1jax.models import cache as caches
from r1jax.models import quantized, transformer
from r1jax.models.config import ModelConfig
from r1jax.sampling import drafts, logits, stops
from r1jax.sharding import LOCAL, Partition
from r1jax.types import Rollout

IDLE = -1  # the row of a slot that has nothing left to do
# What is counted of a rollout, see `types.Rollout`.
COUNTS = (
  "prefill_tokens",
  *("decode_tokens", "steps", "slot_steps", "idle_slot_steps"),
  *("drafted_tokens", "accepted_tokens"),
)
_SMALLEST_WINDOW = 32
_MOST_WINDOWS = 6
_RESUMED = 64  # tokens of begun rows that are fed at a time


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a rollout is compiled for.

  Attributes:
    samples, max_tokens: G and T.
    slots: S; None means one per row. Fewer refill as rows end.
    windows: numbers of columns that are attended to alone, up to T; None means
      `windows_of(T)`. Each compiles a step of its own.
    record_experts: the experts that tokens went through are part of the result.
    plain_logp: so are log-probs under softmax(logits).
    penalises: some row may have a repetition penalty.
    draft: what drafts tokens, one of `drafts.KINDS`, or "".
    draft_tokens: J.
    cache: what caches are held in, one of `quantized.CACHES`; "" is the weights' dtype.
  """

  samples: int
  max_tokens: int
  slots: int | None = None
  windows: tuple[int, ...] | None = None
  record_experts: bool = False
  plain_logp: bool = False
  penalises: bool = False
  draft: str = ""
  draft_tokens: int = 0
  cache: str = ""

  def __post_init__(self):
    one_of(self.cache, quantized.CACHES, key="config.rollout.cache")
    drafts.check(self.draft, self.draft_tokens, penalises=self.penalises)


@struct.dataclass
class Prompts:
  """Prompts of a rollout.

  Attributes:
    tokens_QP: int32, right-padded; at least one token each.
    length_Q: int32.
    problem_Q: int32 number of the problem (`prng.number_of(problem.id)`), keys draws.
  """

  tokens_QP: jax.Array
  length_Q: jax.Array
  problem_Q: jax.Array


@struct.dataclass
class Begun:
  """Rows that an earlier rollout left, to go on with as if it had not ended.

  Rows that have not begun have length 0. At most S rows are between their first and
  last token.

  Attributes:
    tokens_BT, logp_BT, plain_logp_BT, length_B, stopped_B: as of `types.Rollout`.
    done_B: bool, rows that are complete.
    key_BX: uint32, key data that the draws of rows of an earlier rollout derive from.
    has_key_B: bool, rows of an earlier rollout.
  """

  tokens_BT: jax.Array
  logp_BT: jax.Array
  plain_logp_BT: jax.Array | None
  length_B: jax.Array
  stopped_B: jax.Array
  done_B: jax.Array
  key_BX: jax.Array
  has_key_B: jax.Array


@struct.dataclass
class DecodeState:
  """Everything that the loop changes.

  Attributes:
    cache: shared prompts and what each slot wrote itself.
    token_S: the token that each slot feeds next.
    draft_SJ: tokens that are believed to follow it.
    row_S: the row that each slot works on, IDLE when the queue is empty.
    queue_UN, queued_U, next_U: rows to do, how many, and how many of them are taken;
      slots and rows are split evenly among queues, in order.
    prompts: what is asked.
    row_keys_B: what a row's draws derive from.
    stop_state_S: what each slot's text may be the beginning of, see `stops`.
    seen_QV, seen_SV: tokens that penalties concern, or None.
    columns: columns of the ring ever written to.
    done_B: rows that are complete.
    counts: int32 scalars, see `types.Rollout`.
    experts_BTZK: where the tokens fed went, or None where that is not recorded.
  """

  cache: caches.Cache
  token_S: jax.Array
  draft_SJ: jax.Array
  row_S: jax.Array
  queue_UN: jax.Array
  queued_U: jax.Array
  next_U: jax.Array
  prompts: Prompts
  row_keys_B: jax.Array
  stop_state_S: jax.Array
  seen_QV: jax.Array | None
  seen_SV: jax.Array | None
  columns: jax.Array
  tokens_BT: jax.Array
  logp_BT: jax.Array
  plain_logp_BT: jax.Array | None
  length_B: jax.Array
  stopped_B: jax.Array
  done_B: jax.Array
  counts: dict[str, jax.Array]
  experts_BTZK: jax.Array | None


def windows_of(max_tokens: int) -> tuple[int, ...]:
  """Attention windows: a step pays for the smallest that holds the columns in use.

  Each is at least half of the next one; few, since each compiles a step of its own.
  """
  most = _MOST_WINDOWS - 1
  ratio = min(max(max_tokens / _SMALLEST_WINDOW, 1) ** (1 / most), 2)
  parts = {round(max_tokens / ratio**i / _SMALLEST_WINDOW) for i in range(1, most + 1)}
  ends = [part * _SMALLEST_WINDOW for part in sorted(parts) if part]
  return (*[end for end in ends if end < max_tokens], max_tokens)


def generate(
  c: ModelConfig,
  params: dict,
  prompts: Prompts,
  controls: logits.Controls,
  key: jax.Array,
  plan: Plan,
  *,
  stops_YV: jax.Array | None = None,
  partition: Partition = LOCAL,
) -> Rollout:
  """Draws `plan.samples` completions of each prompt. Pure; jit it with the plan bound.

  Args:
    params: stacked, or faster `parameters.unstacked`.
    controls: per-row sampling controls, leaves [B].
    key: names the run and the step.
    stops_YV: table of stop strings, see `stops`.

  Returns:
    Rollout of B = Q * G rows, row b being sample b % G of prompt b // G.
  """
  state, prompt_experts_QPZK = start(
    c, params, prompts, controls, key, plan, partition=partition
  )
  state = advance(
    c, params, state, controls, plan, stops_YV=stops_YV, partition=partition
  )
  return rollout_of(state, trees.checksum(params), prompt_experts_QPZK)


def rollout_of(
  state: DecodeState,
  weights_checksum: jax.Array,
  prompt_experts_QPZK: jax.Array | None = None,
) -> Rollout:
  """What a state holds, in the middle or at its end."""
  return Rollout(
    tokens_BT=state.tokens_BT,
    logp_BT=state.logp_BT,
    plain_logp_BT=state.plain_logp_BT,
    length_B=state.length_B,
    stopped_B=state.stopped_B,
    done_B=state.done_B,
    key_BX=jax.random.key_data(state.row_keys_B),
    counts=state.counts,
    weights_checksum=weights_checksum,
    prompt_experts_QPZK=prompt_experts_QPZK,
    experts_BTZK=state.experts_BTZK,
    num_prompts=len(state.prompts.length_Q),
  )


def state_shardings(state: DecodeState, partition: Partition) -> DecodeState:
  """Where a state lies: caches with their slots and heads, all else everywhere.

  Args:
    state: its shapes.
  """

  def of_leaf(leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
    if leaf.ndim < 4:
      return partition.sharding()
    return partition.fitting(leaf.shape, ("batch", "kv_heads", None, None))

  everywhere = jax.tree.map(lambda _: partition.sharding(), state)
  return everywhere.replace(cache=jax.tree.map(of_leaf, state.cache))


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
    prompt_experts_QPZK = jnp.moveaxis(routed.experts_ZBLK, 0, 2)
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
    token_S=_last(prompts)[jnp.maximum(row_S, 0) // samples],
    draft_SJ=jnp.zeros((num_slots, plan.draft_tokens), jnp.int32),
    row_S=row_S,
    queue_UN=queue_UN,
    queued_U=queued_U,
    next_U=jnp.minimum(slot_N.size, queued_U),
    prompts=prompts,
    row_keys_B=row_keys_B,
    stop_state_S=stops.first(_of_rows(controls, row_S)),
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
  return _placed(state, plan), prompt_experts_QPZK


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
  last_S1 = _last(s.prompts)[prompt_S][:, None]
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

  cache = jax.lax.fori_loop(0, num_blocks, feed, _placed(s, plan).cache)
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
  num_prompts, capacity = prompts.tokens_QP.shape
  further = plan.draft == "mtp"
  empty = caches.empty(
    c,
    num_prompts,
    capacity,
    plan.cache or params["embed"].dtype,
    further=further,
    partition=partition,
  ).replace(filled_at_once=True)
  positions_QP = jnp.broadcast_to(jnp.arange(capacity), prompts.tokens_QP.shape)
  hidden_QPD, cache, routed = transformer.forward(
    c, params, prompts.tokens_QP, positions_QP, cache=empty, partition=partition
  )
  if further:
    _, cache = transformer.draft_further(
      c,
      params,
      hidden_QPD,
      jnp.roll(prompts.tokens_QP, -1, axis=1),
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


def advance(
  c: ModelConfig,
  params: dict,
  state: DecodeState,
  controls: logits.Controls,
  plan: Plan,
  *,
  stops_YV: jax.Array | None = None,
  limit: jax.Array | int | None = None,
  wanted: jax.Array | int | None = None,
  partition: Partition = LOCAL,
) -> DecodeState:
  """Decodes until every row has ended, or for `limit` steps if that is sooner.

  Args:
    limit, wanted: traced. `wanted` ends it as soon as so many prompts have all of their
      samples.
  """
  windows = state.cache.windows
  last_step = None if limit is None else state.counts["steps"] + limit

  def goes_on(s: DecodeState) -> jax.Array:
    going = jnp.any(s.row_S != IDLE)
    if last_step is not None:
      going &= s.counts["steps"] < last_step
    if wanted is not None:
      complete_Q = s.done_B.reshape(-1, plan.samples).all(axis=1)
      going &= complete_Q.sum() < wanted
    return going

  def window_index(s: DecodeState) -> jax.Array:
    """Of the smallest window that holds the columns in use after the next step."""
    used = s.columns + 1
    if plan.draft_tokens:
      used = jnp.max(s.cache.length_S) + 1 + plan.draft_tokens
    # Once around the ring, all columns are in use.
    return jnp.sum(jnp.asarray(windows) < jnp.minimum(used, windows[-1]))

  def run_window(index: int) -> Callable:
    def steps(s: DecodeState) -> DecodeState:
      return jax.lax.while_loop(
        lambda s: goes_on(s) & (window_index(s) == index),
        lambda s: _step(
          c, params, s, controls, plan, stops_YV, windows[index], partition
        ),
        s,
      )

    return steps

  branches = [run_window(index) for index in range(len(windows))]
  return jax.lax.while_loop(
    goes_on, lambda s: jax.lax.switch(window_index(s), branches, s), state
  )


def _step(
  c: ModelConfig,
  params: dict,
  s: DecodeState,
  controls: logits.Controls,
  plan: Plan,
  stops_YV: jax.Array | None,
  window: int,
  partition: Partition,
) -> DecodeState:
  """One forward pass over all slots, and what follows from the tokens drawn."""
  num_rows, max_tokens = s.tokens_BT.shape
  live_S = s.row_S != IDLE
  row_S = jnp.maximum(s.row_S, 0)
  controls_S = _of_rows(controls, s.row_S)
  fed_SL = jnp.concatenate([s.token_S[:, None], s.draft_SJ], axis=1)
  num_fed = fed_SL.shape[1]
  place_SL = s.cache.length_S[:, None] + jnp.arange(num_fed)
  position_SL = s.cache.prompt.length_Q[row_S // plan.samples][:, None] + place_SL
  hidden_SLD, cache, routed = transformer.forward(
    c, params, fed_SL, position_SL, cache=s.cache, window=window, partition=partition
  )

  drawn_SL, logp_SL, plain_logp_SL = _drawn(
    params, s, hidden_SLD, row_S, place_SL, controls_S, plan
  )
  # A token counts if those before it were as drafted and none of them ended the row.
  stopped_SL, stop_state_SL = _stopped(drawn_SL, s.stop_state_S, controls_S, stops_YV)
  most_S1 = jnp.minimum(controls_S.max_tokens, max_tokens)[:, None]
  ends_SL = stopped_SL | (place_SL + 1 >= most_S1)
  right_SJ = (drawn_SL[:, :-1] == s.draft_SJ) & ~ends_SL[:, :-1]
  counts_SL = jnp.concatenate(
    [live_S[:, None], live_S[:, None] & jnp.cumprod(right_SJ, axis=1, dtype=bool)],
    axis=1,
  )
  num_S = counts_SL.sum(axis=1)

  def at_last(x_SL):
    last_S1 = jnp.maximum(num_S - 1, 0)[:, None]
    return jnp.take_along_axis(x_SL, last_S1, axis=1)[:, 0]

  token_S, over_S = at_last(drawn_SL), live_S & at_last(ends_SL)
  stopped_S = at_last(stopped_SL)
  length_S = s.cache.length_S + num_S

  write_S = jnp.where(live_S, s.row_S, num_rows)  # out of range: dropped
  write_SL = (write_S[:, None], jnp.where(counts_SL, place_SL, max_tokens))

  def written(kept_BT, new_SL):
    return kept_BT.at[write_SL].set(new_SL, mode="drop")

  experts_BTZK, plain_logp_BT = s.experts_BTZK, s.plain_logp_BT
  if experts_BTZK is not None:
    experts_BTZK = written(experts_BTZK, jnp.moveaxis(routed.experts_ZBLK, 0, 2))
  if plain_logp_BT is not None:
    plain_logp_BT = written(plain_logp_BT, plain_logp_SL)
  num_idle = jnp.sum(~live_S)
  more = {
    "decode_tokens": num_S.sum(),
    "steps": 1,
    "slot_steps": live_S.size,
    "idle_slot_steps": num_idle,
    "drafted_tokens": plan.draft_tokens * (live_S.size - num_idle),
    "accepted_tokens": jnp.sum(jnp.maximum(num_S - 1, 0)),
  }

  # Slots that ended take the next rows of their queue, in slot order.
  over_UN = over_S.reshape(len(s.queue_UN), -1)
  taken_UN = s.next_U[:, None] + jnp.cumsum(over_UN, axis=1) - 1
  last = s.queue_UN.shape[1] - 1
  next_UN = jnp.take_along_axis(s.queue_UN, jnp.minimum(taken_UN, last), axis=1)
  next_UN = jnp.where(taken_UN < s.queued_U[:, None], next_UN, IDLE)
  next_row_S = jnp.where(over_S, next_UN.reshape(-1), s.row_S).astype(jnp.int32)
  next_prompt_S = jnp.maximum(next_row_S, 0) // plan.samples
  seen_SV = s.seen_SV
  if seen_SV is not None:
    seen_SV = seen_SV.at[jnp.arange(len(token_S)), token_S].set(True)
    seen_SV = jnp.where(over_S[:, None], s.seen_QV[next_prompt_S], seen_SV)
  draft_SJ = s.draft_SJ
  if plan.draft == "mtp":
    draft_SJ, cache = _predicted_further(
      c,
      params,
      s,
      cache,
      hidden_SLD,
      drawn_SL,
      position_SL,
      num_S,
      controls_S,
      window,
      partition,
    )
  after = s.replace(
    cache=cache.replace(length_S=jnp.where(over_S | ~live_S, 0, length_S)),
    token_S=jnp.where(over_S, _last(s.prompts)[next_prompt_S], token_S),
    draft_SJ=draft_SJ,
    row_S=next_row_S,
    next_U=jnp.minimum(s.next_U + over_UN.sum(axis=1), s.queued_U),
    stop_state_S=jnp.where(
      over_S, stops.first(_of_rows(controls, next_row_S)), at_last(stop_state_SL)
    ),
    seen_SV=seen_SV,
    columns=s.columns + num_fed,
    tokens_BT=written(s.tokens_BT, drawn_SL),
    logp_BT=written(s.logp_BT, logp_SL),
    plain_logp_BT=plain_logp_BT,
    length_B=s.length_B.at[write_S].set(length_S, mode="drop"),
    stopped_B=s.stopped_B.at[write_S].set(stopped_S, mode="drop"),
    done_B=s.done_B.at[write_S].set(over_S, mode="drop"),
    counts={name: count + more.get(name, 0) for name, count in s.counts.items()},
    experts_BTZK=experts_BTZK,
  )
  if plan.draft == "ngram":
    after = after.replace(
      draft_SJ=drafts.from_ngrams(
        after.prompts.tokens_QP,
        after.prompts.length_Q,
        after.tokens_BT,
        after.length_B,
        jnp.maximum(after.row_S, 0),
        plan.draft_tokens,
      )
    )
  return _placed(after, plan)


def _placed(s: DecodeState, plan: Plan) -> DecodeState:
  """With the cache told which row each slot works on, and where it writes next."""
  row_S = jnp.where(s.row_S == IDLE, s.length_B.size, s.row_S)
  cache = s.cache.replace(prompt=s.cache.prompt.replace(row_S=row_S))
  if plan.draft_tokens:
    cache = cache.replace(column=cache.length_S)
  return s.replace(cache=cache)


def _of_rows(controls: logits.Controls, row_S: jax.Array) -> logits.Controls:
  """Those of each slot."""
  return jax.tree.map(lambda leaf: leaf[jnp.maximum(row_S, 0)], controls)


def _last(prompts: Prompts) -> jax.Array:
  """The last token of each prompt, int32 [Q]."""
  last_Q1 = prompts.length_Q[:, None] - 1
  return jnp.take_along_axis(prompts.tokens_QP, last_Q1, axis=1)[:, 0]


def _uniform(s: DecodeState, row_S: jax.Array, place_SL: jax.Array) -> jax.Array:
  """What each token of a row is drawn by, float32 [S, L]."""
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
  return jax.vmap(jax.vmap(jax.random.uniform))(fold(s.row_keys_B[row_S], place_SL))


def _drawn(
  params: dict,
  s: DecodeState,
  hidden_SLD: jax.Array,
  row_S: jax.Array,
  place_SL: jax.Array,
  controls_S: logits.Controls,
  plan: Plan,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Tokens [S, L] and their log-probs, those under softmax(logits) where asked for."""
  num_fed = place_SL.shape[1]
  logits_XV = transformer.unembed(params, hidden_SLD.reshape(-1, hidden_SLD.shape[-1]))
  found = logits.sample(
    logits_XV,
    jax.tree.map(lambda leaf: jnp.repeat(leaf, num_fed, axis=0), controls_S),
    _uniform(s, row_S, place_SL).reshape(-1),
    seen_SV=s.seen_SV,
    drawn_S=place_SL.reshape(-1),
    plain=plan.plain_logp,
  )
  return jax.tree.map(lambda x_X: x_X.reshape(place_SL.shape), found)


def _stopped(
  drawn_SL: jax.Array,
  stop_state_S: jax.Array,
  controls_S: logits.Controls,
  stops_YV: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """Whether each token ends its row, and the state of the stop strings behind it."""
  stopped, states = [], []
  for token_S in drawn_SL.T:
    stopped_S = logits.is_stop(token_S, controls_S)
    if stops_YV is not None:
      stop_state_S = stops.advance(stops_YV, stop_state_S, token_S)
      stopped_S |= stop_state_S == stops.MATCHED
    stopped.append(stopped_S)
    states.append(stop_state_S)
  return jnp.stack(stopped, axis=1), jnp.stack(states, axis=1)


def _predicted_further(
  c: ModelConfig,
  params: dict,
  s: DecodeState,
  cache: caches.Cache,
  hidden_SLD: jax.Array,
  drawn_SL: jax.Array,
  position_SL: jax.Array,
  num_S: jax.Array,
  controls_S: logits.Controls,
  window: int,
  partition: Partition,
) -> tuple[jax.Array, caches.Cache]:
  """The token behind those drawn, by the module that predicts one further, [S, 1].

  It is drawn by the uniform that the model will draw by: where both agree on a token's
  place in the distribution, they agree on the token.
  """
  row_S = jnp.maximum(s.row_S, 0)
  further_SLD, cache = transformer.draft_further(
    c,
    params,
    hidden_SLD,
    drawn_SL,
    position_SL,
    before=s.cache,
    after=cache,
    window=window,
    partition=partition,
  )
  last_S11 = jnp.maximum(num_S - 1, 0)[:, None, None]
  further_SD = jnp.take_along_axis(further_SLD, last_S11, axis=1)[:, 0]
  place_S1 = s.cache.length_S[:, None] + num_S[:, None]
  token_S, _, _ = logits.sample(
    transformer.unembed(params, further_SD),
    controls_S,
    _uniform(s, row_S, place_S1)[:, 0],
    drawn_S=place_S1[:, 0],
  )
  return token_S[:, None], cache
