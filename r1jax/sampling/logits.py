"""From logits to the distribution that is drawn from, and the draw.

Letters: S rows, V vocabulary.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Controls:
  """Per-row sampling controls, traced: changing them compiles nothing.

  Attributes:
    temperature: logits are divided by it; 0 is greedy.
    top_k: keep the k most probable tokens; 0 keeps all.
    top_p: keep the smallest set of most probable tokens whose mass reaches it; 1 keeps
      all.
    min_p: drop tokens with less than this fraction of the top token's probability.
    max_tokens: int32 of 1 or more, draw at most this many tokens.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  max_tokens: jax.Array


def controls(
  rows: int,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  max_tokens: int,
) -> Controls:
  """The same controls for every one of `rows` rows."""
  return Controls(
    temperature=jnp.full((rows,), temperature, jnp.float32),
    top_k=jnp.full((rows,), top_k, jnp.int32),
    top_p=jnp.full((rows,), top_p, jnp.float32),
    min_p=jnp.full((rows,), min_p, jnp.float32),
    max_tokens=jnp.full((rows,), max_tokens, jnp.int32),
  )


def log_distribution(logits_SV: jax.Array, controls_S: Controls) -> jax.Array:
  """Log-probs of the distribution drawn from, float32, -inf where truncated.

  Temperature first, then top-k, top-p and min-p on the tempered distribution, each
  measured before truncation, then one renormalisation. Greedy rows (temperature 0) put
  all mass on their first largest logit.
  """
  logits_SV = logits_SV.astype(jnp.float32)
  greedy_S1 = (controls_S.temperature <= 0)[:, None]
  heat_S1 = jnp.where(greedy_S1, 1.0, controls_S.temperature[:, None])
  logp_SV = jax.nn.log_softmax(logits_SV / heat_S1, axis=-1)
  truncates = (
    jnp.any(controls_S.top_k > 0)
    | jnp.any(controls_S.top_p < 1)
    | jnp.any(controls_S.min_p > 0)
  )
  logp_SV = jax.lax.cond(
    truncates,
    lambda: _truncate(logits_SV, heat_S1, controls_S),
    lambda: logp_SV,
  )
  best_S1 = jnp.argmax(logits_SV, axis=-1, keepdims=True)
  one_hot_SV = jnp.arange(logits_SV.shape[-1]) == best_S1
  return jnp.where(greedy_S1, jnp.where(one_hot_SV, 0.0, -jnp.inf), logp_SV)


def shaper(
  *, temperature: float, top_k: int, top_p: float, min_p: float
) -> Callable[[jax.Array], jax.Array] | None:
  """Raw logits [C, V] -> log-probs of the distribution drawn from, for a trainer.

  None where nothing is truncated: then it is softmax(logits / temperature).
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


def _truncate(
  logits_SV: jax.Array, heat_S1: jax.Array, controls_S: Controls
) -> jax.Array:
  """Drops tokens outside of top-k, top-p and min-p and renormalises.

  Ties at the edge of top-k and top-p are kept, so that the kept set depends on the
  probabilities only. The edge is a logit, and logits are compared with it: a
  probability that the compiler makes twice may round differently, and then the edge's
  own token would fall out.
  """
  num_tokens = logits_SV.shape[-1]
  sorted_SV = -jnp.sort(-logits_SV, axis=-1)
  k_S = jnp.where(controls_S.top_k > 0, controls_S.top_k, num_tokens)
  k_S = jnp.clip(k_S, 1, num_tokens)
  edge_k_S1 = jnp.take_along_axis(sorted_SV, (k_S - 1)[:, None], axis=-1)
  prob_SV = jax.nn.softmax(sorted_SV / heat_S1, axis=-1)
  mass_before_SV = jnp.cumsum(prob_SV, axis=-1) - prob_SV
  inside_SV = mass_before_SV < controls_S.top_p[:, None]
  num_inside_S1 = jnp.maximum(inside_SV.sum(axis=-1, keepdims=True), 1)
  num_inside_S1 = jnp.where(controls_S.top_p[:, None] < 1, num_inside_S1, num_tokens)
  edge_p_S1 = jnp.take_along_axis(sorted_SV, num_inside_S1 - 1, axis=-1)
  edge_min_S1 = sorted_SV[:, :1] + heat_S1 * jnp.log(controls_S.min_p)[:, None]
  edge_S1 = jnp.maximum(jnp.maximum(edge_k_S1, edge_p_S1), edge_min_S1)
  edge_S1 = jnp.minimum(edge_S1, sorted_SV[:, :1])  # the top token always stays
  kept_SV = jnp.where(logits_SV >= edge_S1, logits_SV / heat_S1, -jnp.inf)
  return jax.nn.log_softmax(kept_SV, axis=-1)


def draw(logp_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
  """Token whose cumulative probability first exceeds the row's uniform, int32 [S].

  One uniform a row inverts the cumulative distribution, so a row's draw depends on its
  own key only. Two levels: blocks of about sqrt(V) tokens first, then inside the block,
  which is an order of magnitude cheaper than a scan over V or V Gumbel draws.
  """
  num_tokens = logp_SV.shape[-1]
  width = math.isqrt(num_tokens - 1) + 1
  padding = -num_tokens % width
  prob_SV = jnp.pad(jnp.exp(logp_SV), ((0, 0), (0, padding)))
  prob_SAW = prob_SV.reshape(prob_SV.shape[0], -1, width)
  mass_SA = prob_SAW.sum(axis=-1)
  goal_S1 = uniform_S[:, None] * mass_SA.sum(axis=-1, keepdims=True)
  block_S1, before_S1 = _invert(mass_SA, goal_S1)
  inside_SW = jnp.take_along_axis(prob_SAW, block_S1[..., None], axis=1)[:, 0]
  # Rounding may put the goal a little before its block, onto tokens without mass.
  offset_S1, _ = _invert(inside_SW, jnp.maximum(goal_S1 - before_S1, 0.0))
  return (block_S1 * width + offset_S1)[:, 0].astype(jnp.int32)


def _invert(mass_SA: jax.Array, goal_S1: jax.Array) -> tuple[jax.Array, jax.Array]:
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
