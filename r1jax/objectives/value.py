"""A critic's loss, and how much of the returns it explains.

Letters: B rows, L tokens in a row, N tokens of a batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.errors import InputError
from r1jax.objectives import reduce
from r1jax.types import Mean, Statistic


def value_cost(
  value_BL: jax.Array, value_old_BL: jax.Array, return_BL: jax.Array, *, clip: float
) -> jax.Array:
  """Half the squared error of each token's value, the larger of plain and clipped.

  PPO (arXiv 1707.06347) eq. 9 has the squared error; the clipped form is that of its
  authors' code: a value that has moved more than `clip` from the old one towards the
  return has no gradient any more.

  Args:
    value_old_BL, return_BL: constants, points.
    clip: points; 0 for the plain error.
  """
  if not clip >= 0:
    raise InputError(f"config.critic.clip={clip!r}: must be 0 (off) or more")
  value_old_BL, return_BL = jax.lax.stop_gradient((value_old_BL, return_BL))
  error_BL = jnp.square(value_BL - return_BL)
  if clip:
    near_BL = value_old_BL + jnp.clip(value_BL - value_old_BL, -clip, clip)
    error_BL = jnp.maximum(error_BL, jnp.square(near_BL - return_BL))
  return 0.5 * error_BL


def value_loss(
  value_BL: jax.Array,
  value_old_BL: jax.Array,
  return_BL: jax.Array,
  mask_BL: jax.Array,
  length_BL: jax.Array,
  *,
  clip: float,
  reduction: str = "token_mean",
  length_constant: float | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Statistic]]:
  """(sum of `value_cost`, what it adds to the denominator, metrics).

  `value/clip_fraction` is the share of tokens whose value is more than `clip` from the
  old one; it is absent without clipping.

  Args:
    reduction, length_constant: see `reduce.token_weights`; those of the policy's loss
      where both have one denominator.
  """
  cost_BL = value_cost(value_BL, value_old_BL, return_BL, clip=clip)
  weight_BL, count = reduce.token_weights(
    mask_BL, length_BL, reduction=reduction, length_constant=length_constant
  )
  total = reduce.weighted_sum(cost_BL, weight_BL)
  seen: dict[str, Statistic] = {"loss/value": Mean(total, count)}
  if clip:
    moved_BL = (jnp.abs(value_BL - value_old_BL) > clip) & (mask_BL > 0)
    seen["value/clip_fraction"] = Mean(moved_BL.sum() * 1.0, mask_BL.sum())
  return total, count, jax.lax.stop_gradient(seen)


def explained_variance(value_N: np.ndarray, return_N: np.ndarray) -> float:
  """1 - Var(return - value) / Var(return); 1 is perfect, 0 a constant's, below 0 worse.

  Returns:
    0 where all returns are equal, and there is nothing to explain.
  """
  spread = np.var(return_N, dtype=np.float64)
  left = np.var(np.subtract(return_N, value_N, dtype=np.float64))
  return float(1 - left / spread) if spread > 0 else 0.0
