"""The policy's loss from scored tokens, and how far trainer and sampler are apart.

Letters: B rows, L tokens in a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.objectives import reduce
from r1jax.objectives.corrections import importance
from r1jax.objectives.policy_gradient import policy_gradient
from r1jax.training import experts
from r1jax.training.logprobs import TokenScores
from r1jax.types import Experience, Max, Mean, Statistic


def policy_loss(
  scores: TokenScores,
  experience: Experience,
  *,
  balance_coef: float = 0.0,
  correction: str,
  correction_level: str,
  correction_cap: float,
  correction_veto: float,
  **objective: Any,
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the loss, metrics) of a microbatch.

  Where there are no old log-probs, or NaN (`unscored`), the weights are those that the
  rollout is credited to: the ratio is 1 and its gradient that of the log-prob.

  Args:
    scores: of `experience.rows`, under the weights being trained; with the entropy's
      gradient where `entropy_coef` is not 0.
    balance_coef: weight of `experts.balance_loss`, a Python number.
    correction, correction_level, correction_cap, correction_veto: see
      `corrections.importance`; read only without old log-probs, else see `scored`.
    objective: settings of `policy_gradient`.
  """
  rows = experience.rows
  own, seen = scored(
    scores,
    experience,
    correction=correction,
    correction_level=correction_level,
    correction_cap=correction_cap,
    correction_veto=correction_veto,
  )
  if experience.logp_old_BL is None:
    experience = own
  else:
    is_new_BL = jnp.isnan(experience.logp_old_BL)
    experience = experience.replace(
      **{
        name: jnp.where(is_new_BL, getattr(own, name), getattr(experience, name))
        for name in said_of(correction, correction_veto)
      }
    )
    seen = jax.tree.map(lambda x: x * is_new_BL.any(), seen)
  total, _, more = policy_gradient(
    scores.logp_BL,
    experience.logp_old_BL,
    experience.logp_ref_BL,
    experience.advantage_BL,
    rows.mask_BL,
    rows.length_BL,
    rows.segments_BL,
    experience.importance_BL,
    scores.entropy_BL,
    **objective,
  )
  if balance_coef:
    weight_BL, _ = reduce.token_weights(
      rows.mask_BL,
      rows.length_BL,
      reduction=objective["reduction"],
      length_constant=objective["length_constant"],
    )
    added, balance = experts.balance_loss(scores.routed, weight_BL, balance_coef)
    total, more = total + added, more | balance
  entropy_BL = jax.lax.stop_gradient(scores.entropy_BL)
  entropy = Mean((entropy_BL * rows.mask_BL).sum(), rows.mask_BL.sum())
  return total, seen | more | {"policy/entropy": entropy}


def said_of(correction: str, correction_veto: float) -> tuple[str, ...]:
  """Fields of an experience that `scored` fills in."""
  corrected = correction != "none" or correction_veto
  return ("logp_old_BL", "importance_BL") if corrected else ("logp_old_BL",)


def unscored(
  experience: Experience, *, correction: str, correction_veto: float
) -> Experience:
  """With NaN for what `scored` would fill in: `policy_loss` then scores it by the way.

  So it is with the first mini-batch, which is learnt from by the weights at the start
  of a step. One program serves those that are scored before, and this one.
  """
  nothing_BL = np.full(experience.rows.tokens_BL.shape, np.nan, np.float32)
  return experience.replace(
    **dict.fromkeys(said_of(correction, correction_veto), nothing_BL)
  )


def scored(
  scores: TokenScores,
  experience: Experience,
  *,
  correction: str,
  correction_level: str,
  correction_cap: float,
  correction_veto: float,
) -> tuple[Experience, dict[str, Statistic]]:
  """(experience with what the weights at the start of a step say of it, metrics).

  Args:
    correction, correction_level, correction_cap, correction_veto: see
      `corrections.importance`.
  """
  seen = gap(scores, experience)
  logp_old_BL = jax.lax.stop_gradient(scores.logp_BL)
  experience = experience.replace(logp_old_BL=logp_old_BL)
  if "importance_BL" in said_of(correction, correction_veto):
    weight_BL, more = importance(
      scores.shaped_logp_BL,
      experience.logp_behaviour_BL,
      experience.rows.mask_BL,
      experience.rows.segments_BL,
      correction=correction,
      correction_level=correction_level,
      correction_cap=correction_cap,
      correction_veto=correction_veto,
    )
    experience, seen = experience.replace(importance_BL=weight_BL), seen | more
  return experience, seen


def gap(scores: TokenScores, experience: Experience) -> dict[str, Statistic]:
  """How far the trainer's log-probs are from the sampler's, for the same weights.

  `policy/logp_gap_k3` estimates the divergence of the trainer from the sampler, nats.
  """
  mask_BL = experience.rows.mask_BL
  # A token that the sampler kept at the very edge of top-p may have no mass here.
  d_BL = scores.shaped_logp_BL - experience.logp_behaviour_BL
  d_BL = jax.lax.stop_gradient(jnp.where(mask_BL > 0, d_BL, 0.0))
  count = mask_BL.sum()
  return {
    "policy/logp_gap_mean": Mean(jnp.abs(d_BL).sum(), count),
    "policy/logp_gap_max": Max(jnp.abs(d_BL).max()),
    "policy/logp_gap_k3": Mean((jnp.expm1(d_BL) - d_BL).sum(), count),
  }
