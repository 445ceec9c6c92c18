"""From logits to the distribution that is drawn from, and the draw.

The order is: repetition penalty on the raw logits, stop ids masked while an answer is
too short, temperature, then top-k, top-p and min-p, each measured before truncation,
then one renormalisation. Trainers know the part from temperature on (`shaper`).

Letters: S rows, V vocabulary, N stop ids, A blocks of W tokens, K best tokens.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.errors import InputError

MAX_STOP_IDS = 8  # per row; the width is part of what is compiled
_NO_TOKEN = -1
_TAIL = 64  # tokens at the edge of a set that are compared one by one


@struct.dataclass
class Controls:
  """Per-row sampling controls, traced: changing them compiles nothing.

  Attributes:
    temperature: logits are divided by it; 0 is greedy.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the smallest set of most probable tokens whose mass reaches it; 1 keeps
      all.
    min_p: drop tokens with less than this fraction of the top token's probability.
    repetition_penalty: a token of the prompt or of the answer so far has its logit
      divided by it where positive, multiplied where negative (CTRL, arXiv 1909.05858,
      which divides only; the rest is as transformers and vLLM do it); 1 is off.
    min_tokens: int32, stop ids have no mass before this many tokens are drawn.
    max_tokens: int32 of 1 or more, draw at most this many tokens.
    stop_ids_SN: int32, drawing one ends the row; padded with -1.
    stop_strings: bool, whether stop strings end the row (`stops`).
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  repetition_penalty: jax.Array
  min_tokens: jax.Array
  max_tokens: jax.Array
  stop_ids_SN: jax.Array
  stop_strings: jax.Array


def controls(
  rows: int,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  repetition_penalty: float = 1.0,
  min_tokens: int = 0,
  max_tokens: int,
  stop_ids: Sequence[int] = (),
  stop_strings: bool = False,
) -> Controls:
  """The same controls for every one of `rows` rows.

  Raises:
    InputError: more than MAX_STOP_IDS stop ids, or a penalty that is not positive.
  """
  if len(stop_ids) > MAX_STOP_IDS:
    raise InputError(
      f"stop_ids has {len(stop_ids)} ids; a row can have {MAX_STOP_IDS} at most"
    )
  if repetition_penalty <= 0:
    raise InputError(
      f"repetition_penalty={repetition_penalty} must be above 0; 1 is off"
    )
  padding = [_NO_TOKEN] * (MAX_STOP_IDS - len(stop_ids))
  return Controls(
    temperature=jnp.full((rows,), temperature, jnp.float32),
    top_k=jnp.full((rows,), top_k, jnp.int32),
    top_p=jnp.full((rows,), top_p, jnp.float32),
    min_p=jnp.full((rows,), min_p, jnp.float32),
    repetition_penalty=jnp.full((rows,), repetition_penalty, jnp.float32),
    min_tokens=jnp.full((rows,), min_tokens, jnp.int32),
    max_tokens=jnp.full((rows,), max_tokens, jnp.int32),
    stop_ids_SN=jnp.tile(jnp.asarray([*stop_ids, *padding], jnp.int32), (rows, 1)),
    stop_strings=jnp.full((rows,), stop_strings, bool),
  )


def is_stop(token_S: jax.Array, controls_S: Controls) -> jax.Array:
  """Whether a token is one of its row's stop ids, bool [S]."""
  return jnp.any(token_S[:, None] == controls_S.stop_ids_SN, axis=-1)


def seen(tokens_QP: jax.Array, length_Q: jax.Array, num_tokens: int) -> jax.Array:
  """Which tokens a prompt holds, bool [Q, V]: where a repetition penalty begins."""
  prompt_Q1 = jnp.arange(len(tokens_QP))[:, None]
  inside_QP = jnp.arange(tokens_QP.shape[1]) < length_Q[:, None]
  token_QP = jnp.where(inside_QP, tokens_QP, num_tokens)  # out of range: dropped
  empty_QV = jnp.zeros((len(tokens_QP), num_tokens), bool)
  return empty_QV.at[prompt_Q1, token_QP].set(True, mode="drop")


def sample(
  logits_SV: jax.Array,
  controls_S: Controls,
  uniform_S: jax.Array,
  *,
  seen_SV: jax.Array | None = None,
  drawn_S: jax.Array | None = None,
  plain: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Draws a token a row from `log_distribution` of the same arguments, unmade.

  Without truncation the vocabulary is gone through twice: for the largest logit, and
  for the mass of each block of tokens.

  Args:
    uniform_S: float32 in [0, 1).
    seen_SV: bool, tokens of the prompt and of the answer so far; None where no row has
      a repetition penalty.
    drawn_S: int32, tokens drawn so far; None where no row has `min_tokens`.
    plain: whether the log-probs under softmax(logits) are asked for.

  Returns:
    (token_S int32, logp_S under the distribution drawn from, plain_logp_S or None).
  """
  raw_SV = logits_SV.astype(jnp.float32)
  logits_SV, masked = _mask(raw_SV, controls_S, seen_SV, drawn_S)
  peak_S1 = jnp.max(logits_SV, axis=-1, keepdims=True)
  heat_S1, edge_S1 = _heat_and_edge(logits_SV, peak_S1, controls_S)

  def weigh(logits_SX):
    weight_SX = jnp.exp((logits_SX - peak_S1) / heat_S1)
    return jnp.where(logits_SX >= edge_S1, weight_SX, 0.0)

  greedy_S = controls_S.temperature <= 0
  # A greedy row keeps its largest logits: a uniform of 0 takes the first of them.
  token_S, mass_S = _invert(logits_SV, weigh, jnp.where(greedy_S, 0.0, uniform_S))
  logit_S1 = jnp.take_along_axis(logits_SV, token_S[:, None], axis=-1)
  logp_S = ((logit_S1 - peak_S1) / heat_S1)[:, 0] - jnp.log(mass_S)
  logp_S = jnp.where(greedy_S, 0.0, logp_S)
  if not plain:
    return token_S, logp_S, None

  def plain_logp():
    raw_S1 = jnp.take_along_axis(raw_SV, token_S[:, None], axis=-1)
    return raw_S1[:, 0] - jax.nn.logsumexp(raw_SV, axis=-1)

  shaped = masked | jnp.any(_is_shaped(controls_S))
  return token_S, logp_S, jax.lax.cond(shaped, plain_logp, lambda: logp_S)


def log_distribution(
  logits_SV: jax.Array,
  controls_S: Controls,
  *,
  seen_SV: jax.Array | None = None,
  drawn_S: jax.Array | None = None,
) -> jax.Array:
  """Log-probs of the distribution drawn from, float32, -inf where there is no mass.

  Greedy rows (temperature 0) put all mass on their first largest logit. Arguments are
  those of `sample`.
  """
  logits_SV = logits_SV.astype(jnp.float32)
  logits_SV, _ = _mask(logits_SV, controls_S, seen_SV, drawn_S)
  peak_S1 = jnp.max(logits_SV, axis=-1, keepdims=True)
  heat_S1, edge_S1 = _heat_and_edge(logits_SV, peak_S1, controls_S)
  index_V = jnp.arange(logits_SV.shape[-1])
  best_SV = jnp.where(logits_SV == peak_S1, index_V, index_V.size)
  first_S1 = jnp.min(best_SV, axis=-1, keepdims=True)
  kept_SV = logits_SV >= edge_S1
  kept_SV &= (controls_S.temperature[:, None] > 0) | (index_V == first_S1)
  kept_SV = jnp.where(kept_SV, logits_SV / heat_S1, -jnp.inf)
  return jax.nn.log_softmax(kept_SV, axis=-1)


def shaper(
  *, temperature: float, top_k: int, top_p: float, min_p: float
) -> Callable[[jax.Array], jax.Array] | None:
  """Raw logits [C, V] -> log-probs of the distribution drawn from, for a trainer.

  None where nothing is truncated: then it is softmax(logits / temperature). A trainer
  does not model `repetition_penalty` and `min_tokens`, which depend on what came
  before: they are for evaluation and chat.
  """
  if top_k <= 0 and top_p >= 1 and min_p <= 0:
    return None

  def shape(logits_CV: jax.Array) -> jax.Array:
    same = controls(
      len(logits_CV),
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      min_p=min_p,
      max_tokens=1,
    )
    return log_distribution(logits_CV, same)

  return shape


def draw(logp_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
  """Token whose cumulative probability first exceeds the row's uniform, int32 [S].

  Args:
    logp_SV: [..., V]; mass that adds up to a little less or more than 1 will do.
    uniform_S: [...].
  """
  rows_SV = logp_SV.reshape(-1, logp_SV.shape[-1])
  token_S, _ = _invert(rows_SV, jnp.exp, uniform_S.reshape(-1))
  return token_S.reshape(uniform_S.shape)


# ------------------------------------------------------------- what has no mass


def _mask(
  logits_SV: jax.Array,
  controls_S: Controls,
  seen_SV: jax.Array | None,
  drawn_S: jax.Array | None,
) -> tuple[jax.Array, jax.Array | bool]:
  """Penalises what was seen, and forbids stop ids to rows that are too short.

  Returns:
    (logits, whether a row has either).
  """
  if seen_SV is None and drawn_S is None:
    return logits_SV, False
  num_rows, num_tokens = logits_SV.shape
  row_S1 = jnp.arange(num_rows)[:, None]
  penalty_S1 = controls_S.repetition_penalty[:, None]
  forbidden_SN = jnp.full_like(controls_S.stop_ids_SN, num_tokens)  # no token's id
  masks = jnp.asarray(False)
  if seen_SV is not None:
    masks |= jnp.any(penalty_S1 != 1)
  if drawn_S is not None:
    short_S1 = (drawn_S < controls_S.min_tokens)[:, None]
    forbids_SN = short_S1 & (controls_S.stop_ids_SN != _NO_TOKEN)
    forbidden_SN = jnp.where(forbids_SN, controls_S.stop_ids_SN, forbidden_SN)
    masks |= jnp.any(forbids_SN)

  def mask(logits_SV: jax.Array) -> jax.Array:
    if seen_SV is not None:
      penalised_SV = jnp.where(
        logits_SV > 0, logits_SV / penalty_S1, logits_SV * penalty_S1
      )
      logits_SV = jnp.where(seen_SV, penalised_SV, logits_SV)
    return logits_SV.at[row_S1, forbidden_SN].set(-jnp.inf, mode="drop")

  return jax.lax.cond(masks, mask, lambda same_SV: same_SV, logits_SV), masks


def _is_shaped(controls_S: Controls) -> jax.Array:
  """Whether a row's distribution may be another than softmax(logits), bool [S]."""
  shaped_S = (controls_S.temperature != 1) | (controls_S.top_k > 0)
  return shaped_S | (controls_S.top_p < 1) | (controls_S.min_p > 0)


def _heat_and_edge(
  logits_SV: jax.Array, peak_S1: jax.Array, controls_S: Controls
) -> tuple[jax.Array, jax.Array]:
  """What logits are divided by, and the least logit that is kept.

  A token is kept by top-p iff the mass of the strictly more probable ones is below it,
  by top-k iff fewer than k are more probable; so ties share their fate, and the kept
  set depends on the probabilities only. The edge is a logit, and logits are compared
  with it: a probability that the compiler makes twice may round differently, and then
  the edge's own token would fall out.
  """
  num_tokens = logits_SV.shape[-1]
  greedy_S1 = (controls_S.temperature <= 0)[:, None]
  heat_S1 = jnp.where(greedy_S1, 1.0, controls_S.temperature[:, None])
  everything_S1 = jnp.full_like(peak_S1, -jnp.inf)

  def nucleus(active_S1: jax.Array, top_p_S1: jax.Array) -> jax.Array:
    def weigh(logits_SX):
      return jnp.exp((logits_SX - peak_S1) / heat_S1)

    mass_S1 = jnp.sum(weigh(logits_SV), axis=-1, keepdims=True)
    # The top token stays where top_p is 0.
    goal_S1 = jnp.maximum(top_p_S1 * mass_S1, jnp.finfo(jnp.float32).tiny)
    # All tokens from here down have less than 1 - top_p together.
    least_S1 = peak_S1 + heat_S1 * (jnp.log((1 - top_p_S1) / num_tokens) - 1)
    return _edge(
      logits_SV, weigh, peak_S1, least_S1, jnp.where(active_S1, goal_S1, 0.0)
    )

  def best(active_S1: jax.Array, top_k_S1: jax.Array) -> jax.Array:
    goal_S1 = jnp.where(active_S1, jnp.minimum(top_k_S1, num_tokens), 0)
    return _edge(
      logits_SV, jnp.ones_like, peak_S1, everything_S1, goal_S1.astype(jnp.float32)
    )

  edge_S1 = peak_S1 + heat_S1 * jnp.log(controls_S.min_p)[:, None]
  for find, active_S, setting_S in (
    (nucleus, controls_S.top_p < 1, controls_S.top_p),
    (best, controls_S.top_k > 0, controls_S.top_k),
  ):
    active_S1 = active_S[:, None] & ~greedy_S1
    found_S1 = jax.lax.cond(
      jnp.any(active_S1), find, lambda *_: everything_S1, active_S1, setting_S[:, None]
    )
    edge_S1 = jnp.maximum(edge_S1, jnp.where(active_S1, found_S1, -jnp.inf))
  # The top token always stays.
  return heat_S1, jnp.where(greedy_S1, peak_S1, jnp.minimum(edge_S1, peak_S1))


def _edge(
  logits_SV: jax.Array,
  weigh: Callable[[jax.Array], jax.Array],
  peak_S1: jax.Array,
  least_S1: jax.Array,
  goal_S1: jax.Array,
) -> jax.Array:
  """The least logit such that strictly larger ones weigh less than the goal together.

  Bisection over the values of float32, exact since each round compares logits with a
  number and adds weights up in the same order, so that a larger number never weighs
  more. It ends where a few tokens are left to look at in each row; those are compared
  with one another. A sort of the vocabulary costs an order of magnitude more on a CPU.

  Args:
    weigh: weights [S, X] of logits [S, X]; a larger logit does not weigh less.
    peak_S1: the largest logit.
    least_S1: the logits above it reach the goal.
    goal_S1: 0 where the row is not to be searched; its result means nothing.
  """
  num_tokens = logits_SV.shape[-1]
  tail = min(_TAIL, num_tokens)
  weight_SV = weigh(logits_SV)

  def unsettled(state: tuple[jax.Array, ...]) -> jax.Array:
    _, low_S1, high_S1, above_S1 = state
    # Each token in between weighs at least as much as one at the low end.
    many_S1 = goal_S1 - above_S1 > (tail - 1) * weigh(_of_order(low_S1))
    return jnp.any(many_S1 & (low_S1 + 1 < high_S1))

  def halve(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    round_, low_S1, high_S1, above_S1 = state
    # By value, as logits lie; around 0 there is no end to that, so by order at last.
    low_value_S1, high_value_S1 = _of_order(low_S1), _of_order(high_S1)
    by_value_S1 = _order(low_value_S1 + (high_value_S1 - low_value_S1) / 2)
    by_value_S1 = jnp.clip(by_value_S1, low_S1 + 1, high_S1 - 1)
    by_order_S1 = (low_S1 >> 1) + (high_S1 >> 1) + (low_S1 & high_S1 & 1)
    is_by_value_S1 = (round_ < 16) & jnp.isfinite(low_value_S1)
    middle_S1 = jnp.where(is_by_value_S1, by_value_S1, by_order_S1)
    larger_SV = jnp.where(logits_SV > _of_order(middle_S1), weight_SV, 0.0)
    sum_S1 = jnp.sum(larger_SV, axis=-1, keepdims=True)
    lower_S1 = sum_S1 < goal_S1
    return (
      round_ + 1,
      jnp.where(lower_S1, low_S1, middle_S1),
      jnp.where(lower_S1, middle_S1, high_S1),
      jnp.where(lower_S1, sum_S1, above_S1),
    )

  start = (0, _order(least_S1), _order(peak_S1), jnp.zeros_like(peak_S1))
  _, low_S1, high_S1, above_S1 = jax.lax.while_loop(unsettled, halve, start)
  best_SK = jnp.where(logits_SV <= _of_order(high_S1), logits_SV, -jnp.inf)
  if tail < num_tokens:
    best_SK, _ = jax.lax.top_k(best_SK, tail)
  is_larger_SKK = best_SK[:, None, :] > best_SK[:, :, None]
  larger_SKK = jnp.where(is_larger_SKK, weigh(best_SK)[:, None, :], 0.0)
  is_kept_SK = above_S1 + jnp.sum(larger_SKK, axis=-1) < goal_S1
  # What the bisection found to be outside stays there, whatever rounding says here.
  is_kept_SK &= best_SK > _of_order(low_S1)
  return jnp.min(best_SK, axis=-1, keepdims=True, where=is_kept_SK, initial=jnp.inf)


def _order(value: jax.Array) -> jax.Array:
  """int32 that is ordered as float32 values are."""
  bits = jax.lax.bitcast_convert_type(value, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _of_order(order: jax.Array) -> jax.Array:
  """The float32 of an `_order`, or one nearby of which comparisons say the same.

  Backends may take numbers too small for their exponent as 0, so that no logit of 0
  would be above the negative ones.
  """
  bits = jnp.where(order < 0, order ^ 0x7FFFFFFF, order)
  value = jax.lax.bitcast_convert_type(bits, jnp.float32)
  tiny = jnp.finfo(jnp.float32).tiny
  return jnp.where((order < 0) & (value > -tiny), -tiny, value)


# ------------------------------------------------------------------------ the draw


def _invert(
  value_SV: jax.Array,
  weigh: Callable[[jax.Array], jax.Array],
  uniform_S: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Token where the running share of the weight first exceeds the uniform; the weight.

  One uniform a row inverts the cumulative distribution, so a row's draw depends on its
  own key only. Two levels: blocks of about sqrt(V) tokens first, then inside the block,
  which is an order of magnitude cheaper than a scan over V or V Gumbel draws.
  """
  num_tokens = value_SV.shape[-1]
  width = _block_width(num_tokens)
  padding = -num_tokens % width
  if padding:
    value_SV = jnp.pad(value_SV, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  value_SAW = value_SV.reshape(len(value_SV), -1, width)
  mass_SA = jnp.sum(weigh(value_SV).reshape(value_SAW.shape), axis=-1)
  # Or else compilers make their sum from the vocabulary, once more.
  mass_SA = jax.lax.optimization_barrier(mass_SA)
  mass_S = jnp.sum(mass_SA, axis=-1)
  goal_S1 = (uniform_S * mass_S)[:, None]
  block_S1, before_S1 = _first_above(mass_SA, goal_S1)
  inside_SW = jnp.take_along_axis(value_SAW, block_S1[..., None], axis=1)[:, 0]
  # Rounding may put the goal a little before its block, onto tokens without mass.
  offset_S1, _ = _first_above(weigh(inside_SW), jnp.maximum(goal_S1 - before_S1, 0.0))
  return (block_S1 * width + offset_S1)[:, 0].astype(jnp.int32), mass_S


def _block_width(num_tokens: int) -> int:
  """The divisor nearest to the square root; the root itself where none is near."""
  root = math.sqrt(num_tokens)
  near = range(math.ceil(root / 8), math.floor(root * 8) + 1)
  divisors = [width for width in near if num_tokens % width == 0]
  return min(
    divisors, key=lambda width: max(width / root, root / width), default=math.ceil(root)
  )


def _first_above(mass_SA: jax.Array, goal_S1: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Index where the running sum first exceeds the goal, and the sum before it.

  Rounding may put the goal past the end or onto an entry without mass: then the last
  entry with mass up to there is taken.
  """
  ends_SA = jnp.cumsum(mass_SA, axis=-1)
  first_S1 = jnp.sum(ends_SA <= goal_S1, axis=-1, keepdims=True)
  index_A = jnp.arange(mass_SA.shape[-1])
  candidates_SA = jnp.where((mass_SA > 0) & (index_A <= first_S1), index_A, 0)
  index_S1 = candidates_SA.max(axis=-1, keepdims=True)
  before_SA = ends_SA - mass_SA
  return index_S1, jnp.take_along_axis(before_SA, index_S1, axis=-1)
