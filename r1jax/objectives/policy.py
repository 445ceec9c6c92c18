"""Policy terms: per-token costs from the ratio of new to old probability.

Letters: B rows, L tokens in a row. Rows are packed, so an advantage is given per token.
"""

import jax
import jax.numpy as jnp


def clipped_surrogate(
  logp_BL: jax.Array,
  logp_old_BL: jax.Array,
  adv_BL: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
) -> jax.Array:
  """Per-token clipped policy objective, as a cost.

  DeepSeek-R1 report (arXiv 2501.12948) Eq. 1, the inner minimum without the KL term.
  Departs: the report writes the ratio for a whole answer; this one is per token, as in
  DeepSeekMath (arXiv 2402.03300) Eq. 3.

  R1's clip of 10 allows ratios in [-9, 11]: a good token stops gaining at 11 times its
  old probability, and nothing ever limits how far a bad one is pushed down.

  Args:
    logp_old_BL: constants from the weights that the rollout is credited to.
    clip_low, clip_high: the allowed ratio is [1 - clip_low, 1 + clip_high].
  """
  ratio_BL = jnp.exp(logp_BL - jax.lax.stop_gradient(logp_old_BL))
  adv_BL = jax.lax.stop_gradient(adv_BL)
  inside_BL = jnp.clip(ratio_BL, 1.0 - clip_low, 1.0 + clip_high)
  return -jnp.minimum(ratio_BL * adv_BL, inside_BL * adv_BL)


def clip_fraction(
  logp_BL: jax.Array,
  logp_old_BL: jax.Array,
  adv_BL: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
) -> jax.Array:
  """1 on tokens whose gradient the clip removes, 0 elsewhere; its mean is the fraction.

  Only one side is ever active: the upper for a positive advantage, the lower for a
  negative one. A ratio outside on the other side still learns and is not counted.
  """
  ratio_BL = jnp.exp(logp_BL - logp_old_BL)
  above_BL = (adv_BL > 0) & (ratio_BL > 1.0 + clip_high)
  below_BL = (adv_BL < 0) & (ratio_BL < 1.0 - clip_low)
  return jax.lax.stop_gradient((above_BL | below_BL).astype(logp_BL.dtype))
