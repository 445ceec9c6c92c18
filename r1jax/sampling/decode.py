"""The rollout: prompts prefilled once, one compiled loop that decodes and refills.

`generate` is the whole of it; `prefill.start` and `advance` are its two halves, for a
host that looks at the tokens while they come.

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

import jax
import jax.numpy as jnp

from r1jax import trees
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.sampling import drafts, logits, stops
from r1jax.sampling.loop_state import (
  IDLE,
  DecodeState,
  Plan,
  Prompts,
  last_tokens,
  of_rows,
  placed,
  rollout_of,
)
from r1jax.sampling.prefill import start
from r1jax.sharding import LOCAL, Partition
from r1jax.types import Rollout


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

  def through_windows(s: DecodeState) -> DecodeState:
    # One loop behind another: a switch among them would copy all of the cache.
    for index, window in enumerate(windows):
      s = jax.lax.while_loop(
        lambda s, index=index: goes_on(s) & (window_index(s) == index),
        lambda s, window=window: _step(
          c, params, s, controls, plan, stops_YV, window, partition
        ),
        s,
      )
    return s

  return jax.lax.while_loop(goes_on, through_windows, state)


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
  controls_S = of_rows(controls, s.row_S)
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
    token_S=jnp.where(over_S, last_tokens(s.prompts)[next_prompt_S], token_S),
    draft_SJ=draft_SJ,
    row_S=next_row_S,
    next_U=jnp.minimum(s.next_U + over_UN.sum(axis=1), s.queued_U),
    stop_state_S=jnp.where(
      over_S, stops.first(of_rows(controls, next_row_S)), at_last(stop_state_SL)
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
  return placed(after, plan)


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
