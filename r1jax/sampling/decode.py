"""The rollout: prompts prefilled once, one compiled loop that decodes and refills.

`generate` is the whole of it; `start` and `advance` are its two halves, for a host that
looks at the tokens while they come.

Letters: Q prompts, B = Q * G rows to make, S slots that make them, P prompt slots,
T completion slots, V vocabulary, Z layers with experts, K experts of a token.

A slot continues one (prompt, sample) pair; when that ends it takes the next pair of the
queue without leaving the loop. Its first step feeds the prompt's last token, so a pair
needs nothing but the shared prompt cache to start. Every draw is a function of (key,
problem, sample, position): slots, queue order and batch mates change nothing.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax import trees
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sampling import logits
from r1jax.sharding import LOCAL, Partition
from r1jax.types import Rollout

IDLE = -1  # the pair of a slot that has nothing left to do


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
class DecodeState:
  """Everything that the loop changes.

  Attributes:
    cache: shared prompts and what each slot wrote itself.
    token_S: the token that each slot feeds next.
    pair_S: the row that each slot works on, IDLE when the queue is empty.
    next_pair: head of the queue.
    last_Q: the last token of each prompt, which a row's first step feeds.
    row_keys_B: what a row's draws derive from.
    steps, idle: decode steps so far, and the slots that had nothing to do in them.
    experts_BTZK: where the tokens fed went, or None where that is not recorded.
  """

  cache: caches.Cache
  token_S: jax.Array
  pair_S: jax.Array
  next_pair: jax.Array
  last_Q: jax.Array
  row_keys_B: jax.Array
  tokens_BT: jax.Array
  logp_BT: jax.Array
  length_B: jax.Array
  stopped_B: jax.Array
  steps: jax.Array
  idle: jax.Array
  experts_BTZK: jax.Array | None


def prefill(
  c: ModelConfig, params: dict, prompts: Prompts, partition: Partition
) -> tuple[caches.Cache, transformer.Routed | None]:
  """Keys and values of every prompt token but the last, once per prompt."""
  num_prompts, capacity = prompts.tokens_QP.shape
  start = caches.empty(c, num_prompts, capacity, params["embed"].dtype)
  positions_QP = jnp.broadcast_to(jnp.arange(capacity), prompts.tokens_QP.shape)
  _, cache, routed = transformer.forward(
    c, params, prompts.tokens_QP, positions_QP, cache=start, partition=partition
  )
  return cache, routed


def windows_of(max_tokens: int) -> tuple[int, ...]:
  """Attention windows: a step pays for the smallest that covers its longest slot."""
  smallest = 32
  num_doublings = max(math.ceil(math.log2(max(max_tokens, 1) / smallest)), 0)
  return (*[smallest * 2**i for i in range(num_doublings)], max_tokens)


def generate(
  c: ModelConfig,
  params: dict,
  prompts: Prompts,
  controls: logits.Controls,
  key: jax.Array,
  *,
  samples: int,
  max_tokens: int,
  stop_ids: tuple[int, ...],
  slots: int | None = None,
  record_experts: bool = False,
  partition: Partition = LOCAL,
) -> Rollout:
  """Draws `samples` completions of each prompt. Pure; jit it with the statics bound.

  Args:
    controls: per-row sampling controls, leaves [B].
    key: names the run and the step.
    samples, max_tokens, stop_ids, slots: static. `slots` None means one per row; fewer
      refill as rows end.
    record_experts: static; the experts that tokens went through are part of the result.

  Returns:
    Rollout of B = Q * samples rows, row b being sample b % samples of prompt
    b // samples.
  """
  begun, prompt_experts_QPZK = start(
    c,
    params,
    prompts,
    key,
    samples=samples,
    max_tokens=max_tokens,
    slots=slots,
    record_experts=record_experts,
    partition=partition,
  )
  end = advance(c, params, begun, controls, stop_ids=stop_ids, partition=partition)
  slot_steps = end.steps * end.pair_S.size
  return Rollout(
    tokens_BT=end.tokens_BT,
    logp_BT=end.logp_BT,
    length_B=end.length_B,
    stopped_B=end.stopped_B,
    counts={
      "prefill_tokens": jnp.sum(prompts.length_Q - 1),
      "decode_tokens": slot_steps - end.idle,
      "steps": end.steps,
      "slot_steps": slot_steps,
      "idle_slot_steps": end.idle,
    },
    weights_checksum=trees.checksum(params),
    prompt_experts_QPZK=prompt_experts_QPZK,
    experts_BTZK=end.experts_BTZK,
  )


def start(
  c: ModelConfig,
  params: dict,
  prompts: Prompts,
  key: jax.Array,
  *,
  samples: int,
  max_tokens: int,
  slots: int | None = None,
  record_experts: bool = False,
  partition: Partition = LOCAL,
) -> tuple[DecodeState, jax.Array | None]:
  """Prefills the prompts and gives each slot its first pair; arguments of `generate`.

  Returns:
    (state before the first step, prompt_experts_QPZK or None).
  """
  num_prompts = prompts.tokens_QP.shape[0]
  num_rows = num_prompts * samples
  num_slots = num_rows if slots is None else min(slots, num_rows)

  prompt_Q = jnp.arange(num_prompts)
  last_Q = prompts.tokens_QP[prompt_Q, prompts.length_Q - 1]
  prefilled, prompts_routed = prefill(c, params, prompts, partition)
  pair_S = jnp.arange(num_slots, dtype=jnp.int32)
  shared = caches.PromptCache(
    k_ZQKHP=prefilled.k_ZSKHW,
    v_ZQKPH=prefilled.v_ZSKWH,
    length_Q=prompts.length_Q - 1,
    index_S=pair_S // samples,
  )
  own = caches.empty(c, num_slots, max_tokens, params["embed"].dtype)
  row_keys_B = jax.vmap(jax.random.fold_in)(
    jax.vmap(jax.random.fold_in, (None, 0))(
      key, jnp.repeat(prompts.problem_Q, samples)
    ),
    jnp.tile(jnp.arange(samples), num_prompts),
  )
  experts_BTZK = prompt_experts_QPZK = None
  if record_experts:
    prompt_experts_QPZK = jnp.moveaxis(prompts_routed.experts_ZBLK, 0, 2)
    shape = (num_rows, max_tokens, *prompt_experts_QPZK.shape[2:])
    experts_BTZK = jnp.full(shape, -1, jnp.int32)
  begun = DecodeState(
    cache=own.replace(prompt=shared),
    token_S=last_Q[shared.index_S],
    pair_S=pair_S,
    next_pair=jnp.asarray(num_slots, jnp.int32),
    last_Q=last_Q,
    row_keys_B=row_keys_B,
    tokens_BT=jnp.zeros((num_rows, max_tokens), jnp.int32),
    logp_BT=jnp.zeros((num_rows, max_tokens), jnp.float32),
    length_B=jnp.zeros((num_rows,), jnp.int32),
    stopped_B=jnp.zeros((num_rows,), bool),
    steps=jnp.asarray(0, jnp.int32),
    idle=jnp.asarray(0, jnp.int32),
    experts_BTZK=experts_BTZK,
  )
  return begun, prompt_experts_QPZK


def advance(
  c: ModelConfig,
  params: dict,
  s: DecodeState,
  controls: logits.Controls,
  *,
  stop_ids: tuple[int, ...],
  limit: jax.Array | int | None = None,
  windows: tuple[int, ...] | None = None,
  partition: Partition = LOCAL,
) -> DecodeState:
  """Decodes until every row has ended, or `limit` steps if that is sooner.

  Args:
    limit: traced.
    windows: static; `windows_of(max_tokens)`, or fewer, up to max_tokens, which compile
      sooner.
  """
  num_rows, max_tokens = s.tokens_BT.shape
  samples = num_rows // s.last_Q.size
  stop_ids_K = jnp.asarray(stop_ids, jnp.int32)
  windows = windows_of(max_tokens) if windows is None else windows
  last_step = None if limit is None else s.steps + limit

  def step(s: DecodeState, window: int) -> DecodeState:
    place_S = s.cache.length_S
    position_S = s.cache.prompt.length_Q[s.cache.prompt.index_S] + place_S
    hidden_SLD, cache, routed = transformer.forward(
      c,
      params,
      s.token_S[:, None],
      position_S[:, None],
      cache=s.cache,
      window=window,
      partition=partition,
    )
    logits_SV = transformer.unembed(params, hidden_SLD[:, 0])
    live_S = s.pair_S != IDLE
    row_S = jnp.where(live_S, s.pair_S, 0)
    controls_S = jax.tree.map(lambda leaf: leaf[row_S], controls)
    logp_SV = logits.log_distribution(logits_SV, controls_S)
    keys_S = jax.vmap(jax.random.fold_in)(s.row_keys_B[row_S], place_S)
    token_S = logits.draw(logp_SV, jax.vmap(jax.random.uniform)(keys_S))
    logp_S = jnp.take_along_axis(logp_SV, token_S[:, None], axis=-1)[:, 0]

    write_S = jnp.where(live_S, s.pair_S, num_rows)  # out of range: dropped
    experts_BTZK = s.experts_BTZK
    if experts_BTZK is not None:
      experts_SZK = jnp.moveaxis(routed.experts_ZBLK[:, :, 0], 0, 1)
      experts_BTZK = experts_BTZK.at[write_S, place_S].set(experts_SZK, mode="drop")
    stopped_S = jnp.isin(token_S, stop_ids_K)
    over_S = live_S & (stopped_S | (place_S + 1 >= controls_S.max_tokens))
    over_S |= live_S & (place_S + 1 >= max_tokens)
    # Slots that ended take the next pairs of the queue, in slot order.
    taken_S = s.next_pair + jnp.cumsum(over_S) - 1
    pair_S = jnp.where(over_S, jnp.where(taken_S < num_rows, taken_S, IDLE), s.pair_S)
    pair_S = pair_S.astype(jnp.int32)
    index_S = jnp.where(pair_S == IDLE, 0, pair_S) // samples
    cache = cache.replace(
      length_S=jnp.where(over_S | ~live_S, 0, cache.length_S),
      prompt=cache.prompt.replace(index_S=index_S),
    )
    return s.replace(
      cache=cache,
      token_S=jnp.where(over_S, s.last_Q[index_S], token_S),
      pair_S=pair_S,
      next_pair=jnp.minimum(s.next_pair + over_S.sum(), num_rows),
      tokens_BT=s.tokens_BT.at[write_S, place_S].set(token_S, mode="drop"),
      logp_BT=s.logp_BT.at[write_S, place_S].set(logp_S, mode="drop"),
      length_B=s.length_B.at[write_S].set(place_S + 1, mode="drop"),
      stopped_B=s.stopped_B.at[write_S].set(stopped_S, mode="drop"),
      steps=s.steps + 1,
      idle=s.idle + jnp.sum(~live_S),
      experts_BTZK=experts_BTZK,
    )

  def goes_on(s: DecodeState) -> jax.Array:
    alive = jnp.any(s.pair_S != IDLE)
    return alive if last_step is None else alive & (s.steps < last_step)

  def window_index(s: DecodeState) -> jax.Array:
    longest = jnp.max(s.cache.length_S) + 1
    return jnp.sum(jnp.asarray(windows) < longest)

  def run_window(index: int) -> Callable:
    def steps(s: DecodeState) -> DecodeState:
      return jax.lax.while_loop(
        lambda s: goes_on(s) & (window_index(s) == index),
        lambda s: step(s, windows[index]),
        s,
      )

    return steps

  branches = [run_window(index) for index in range(len(windows))]
  return jax.lax.while_loop(
    goes_on, lambda s: jax.lax.switch(window_index(s), branches, s), s
  )
