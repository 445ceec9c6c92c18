"""Weights for tokens that were drawn from something else than the policy updated from.

The behaviour is what tokens were drawn from: older weights, or the same ones computed
otherwise. The proximal policy is the weights at the start of a step, the "old" ones of
a clip. Their ratio stands outside of the clipped term (decoupled PPO, arXiv 2110.00641,
and AReaL, arXiv 2505.24298), and has no gradient.

Letters: B rows, L tokens in a row.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import InputError, one_of
from r1jax.objectives import segments
from r1jax.types import Mean

# Where a ratio is above the cap: it counts as the cap, or the token does not count.
KINDS = ("none", "truncate", "mask")


def token(log_ratio_BL, mask_BL, segments_BL):
  """Of each token by itself: little variance, and biased."""
  del mask_BL, segments_BL
  return log_ratio_BL


# Of what the ratio is. A product over the answer is unbiased and varies the most; the
# geometric mean over its tokens does not grow with its length.
LEVELS = {"token": token, "sequence": segments.total, "geometric": segments.mean}


def importance(
  logp_BL: jax.Array,
  logp_behaviour_BL: jax.Array,
  mask_BL: jax.Array,
  segments_BL: jax.Array,
  *,
  correction: str,
  correction_level: str,
  correction_cap: float,
  correction_veto: float,
) -> tuple[jax.Array, dict[str, Mean]]:
  """Importance weights proximal / behaviour, bounded, without gradient.

  Truncated: Espeholt et al. (arXiv 1802.01561), for returns; Yao et al. 2025, "Your
  Efficient RL Framework Secretly Brings You Off-Policy RL Training", for tokens.
  Masked: IcePop (Ring-1T, arXiv 2510.18855). Departs: it has a lower bound too.

  Args:
    logp_BL: under the weights at the start of a step, as the sampler shapes them.
    logp_behaviour_BL: as drawn; both may be anything where the mask is 0.
    correction: one of `KINDS`.
    correction_level: one of `LEVELS`.
    correction_cap: the largest ratio that counts as it is, above 0.
    correction_veto: an answer with a token of a ratio below this gets weight 0 as a
      whole, whatever the other settings are; 0 is off.

  Returns:
    (weight_BL, 1 outside of the mask, metrics).
  """
  one_of(correction, KINDS, key="config.loss.correction")
  one_of(correction_level, LEVELS, key="config.loss.correction_level")
  if correction != "none" and not correction_cap > 0:
    raise InputError(
      f"config.loss.correction_cap={correction_cap} with config.loss.correction="
      f"{correction!r}: give a number above 0, such as 2.0"
    )
  inside_BL = mask_BL > 0
  d_BL = jnp.where(inside_BL, logp_BL - logp_behaviour_BL, 0.0)
  d_BL = jax.lax.stop_gradient(d_BL)
  weight_BL = jnp.ones_like(d_BL)
  count = inside_BL.sum().astype(jnp.float32)
  metrics = {}
  if correction != "none":
    ratio_BL = jnp.exp(LEVELS[correction_level](d_BL, mask_BL, segments_BL))
    above_BL = inside_BL & (ratio_BL > correction_cap)
    beyond = {"truncate": correction_cap, "mask": 0.0}[correction]
    weight_BL = jnp.where(above_BL, beyond, jnp.where(inside_BL, ratio_BL, 1.0))
    metrics["policy/importance_capped"] = Mean(above_BL.sum() * 1.0, count)
  if correction_veto > 0:
    below_BL = (jnp.exp(d_BL) < correction_veto) * 1.0
    vetoed_BL = inside_BL & (segments.total(below_BL, mask_BL, segments_BL) > 0)
    weight_BL = jnp.where(vetoed_BL, 0.0, weight_BL)
    metrics["policy/importance_vetoed"] = Mean(vetoed_BL.sum() * 1.0, count)
  mean = Mean((weight_BL * inside_BL).sum(), count)
  return weight_BL, {"policy/importance_mean": mean} | metrics
