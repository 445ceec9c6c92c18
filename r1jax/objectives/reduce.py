"""From per-token costs to one number: weights per token and one global count.

A batch is cut into microbatches and over hosts, so a loss leaves here as (sum, count):
sums are added, counts are added, and the one division comes last, outside. Rows are
packed, so a sequence is a segment of a row; it reaches these functions only through
`length_BL`, and must lie in one row whole.

Letters: B rows, L tokens in a row.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import InputError, one_of

TRUNCATED_KINDS = ("keep", "mask", "penalise")


def share_of_sequence(mask_BL: jax.Array, length_BL: jax.Array) -> jax.Array:
  """1/|o| on each of a sequence's |o| trained tokens, 0 elsewhere."""
  return jnp.where(mask_BL > 0, mask_BL / jnp.maximum(length_BL, 1), 0.0)


def num_sequences(mask_BL: jax.Array, length_BL: jax.Array) -> jax.Array:
  """How many sequences have a trained token, as a whole float32.

  The shares of a sequence add up to 1 but for a rounding error, which is removed here,
  so that counts of microbatches add up exactly.
  """
  return jnp.round(share_of_sequence(mask_BL, length_BL).sum())


def sequence_mean(mask_BL, length_BL, length_constant):
  """Mean over sequences of the mean over a sequence's tokens: GRPO as published.

  A sequence without a trained token is in neither the sum nor the count.
  """
  del length_constant
  return share_of_sequence(mask_BL, length_BL), num_sequences(mask_BL, length_BL)


def token_mean(mask_BL, length_BL, length_constant):
  """Mean over all tokens of the batch, as in DAPO (arXiv 2503.14476)."""
  del length_BL, length_constant
  return mask_BL, mask_BL.sum()


def constant(mask_BL, length_BL, length_constant):
  """Sum over tokens, over sequences times a constant: Dr. GRPO (arXiv 2503.20783)."""
  if length_constant is None or length_constant <= 0:
    raise InputError(
      f"config.loss.length_constant={length_constant!r} with "
      "config.loss.reduction='constant': give a number above 0, for instance the "
      "longest completion allowed"
    )
  return mask_BL, num_sequences(mask_BL, length_BL) * length_constant


REDUCTIONS = {
  "sequence_mean": sequence_mean,
  "token_mean": token_mean,
  "constant": constant,
}


def token_weights(
  mask_BL: jax.Array,
  length_BL: jax.Array,
  *,
  reduction: str,
  length_constant: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(weight of every token, count that this batch adds to the denominator).

  Args:
    mask_BL: 1 on tokens trained on.
    length_BL: on each token, how many masked-in tokens its sequence has; read only
      where the mask is 1.
    length_constant: tokens, for "constant" only.
  """
  one_of(reduction, REDUCTIONS, key="config.loss.reduction")
  return REDUCTIONS[reduction](mask_BL.astype(jnp.float32), length_BL, length_constant)


def weighted_sum(cost_BL: jax.Array, weight_BL: jax.Array) -> jax.Array:
  """Sum of weight times cost; a cost of weight 0 may be anything, even NaN."""
  return (jnp.where(weight_BL > 0, cost_BL, 0.0) * weight_BL).sum()


def apply_truncated(
  reward_QG: np.ndarray,
  truncated_QG: np.ndarray,
  *,
  truncated: str = "keep",
  penalty: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
  """What to do with answers that the length limit cut off, before advantages are taken.

  Args:
    reward_QG: rewards in points.
    truncated_QG: 1 where the answer did not end by itself.
    truncated: "keep" trains on them like on any other; "mask" takes their tokens out of
      the loss (overlong filtering of DAPO, arXiv 2503.14476), while their reward still
      counts for the group's mean; "penalise" lowers their reward by `penalty` points.

  Returns:
    (rewards, 1 where the answer's tokens are trained on), both [Q, G].
  """
  one_of(truncated, TRUNCATED_KINDS, key="config.truncated.kind")
  cut_QG = truncated_QG.astype(reward_QG.dtype)
  trained_QG = np.ones_like(cut_QG)
  if truncated == "mask":
    trained_QG = 1 - cut_QG
  if truncated == "penalise":
    if not penalty > 0:
      raise InputError(
        f"config.truncated.penalty={penalty} with config.truncated.kind='penalise' "
        "changes nothing: give points above 0, or kind='keep'"
      )
    reward_QG = reward_QG - penalty * cut_QG
  return reward_QG, trained_QG
