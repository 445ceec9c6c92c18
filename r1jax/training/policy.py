"""The policy's loss from scored tokens, and how far trainer and sampler are apart.

Letters: B rows, L tokens in a row.
"""

from typing import Any

import jax
import jax.numpy as jnp

from r1jax.objectives import reduce
from r1jax.objectives.grpo import grpo
from r1jax.training import experts
from r1jax.training.logprobs import TokenScores
from r1jax.types import Experience, Max, Mean, Statistic


def policy_loss(
  scores: TokenScores,
  experience: Experience,
  *,
  balance_coef: float = 0.0,
  importance_cap: float = 0.0,
  **objective: Any,
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum of the loss, metrics) of a microbatch.

  Without old log-probs the weights are those that the rollout is credited to: the
  ratio is 1 and its gradient that of the log-prob.

  Args:
    scores: of `experience.rows`, under the weights being trained.
    balance_coef: weight of `experts.balance_loss`, a Python number.
    importance_cap: see `importance`; 0 for none.
    objective: settings of `grpo`.
  """
  rows = experience.rows
  seen: dict[str, Statistic] = {}
  logp_old_BL = experience.logp_old_BL
  if logp_old_BL is None:
    experience, seen = scored(scores, experience, importance_cap=importance_cap)
    logp_old_BL = experience.logp_old_BL
  advantage_BL = experience.advantage_BL
  if experience.importance_BL is not None:
    # Surrogates are linear in the advantage, and the weight is 0 or more.
    advantage_BL *= experience.importance_BL
  total, _, more = grpo(
    scores.logp_BL,
    logp_old_BL,
    experience.logp_ref_BL,
    advantage_BL,
    rows.mask_BL,
    rows.length_BL,
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
  entropy = Mean((scores.entropy_BL * rows.mask_BL).sum(), rows.mask_BL.sum())
  return total, seen | more | {"policy/entropy": entropy}


def scored(
  scores: TokenScores, experience: Experience, *, importance_cap: float
) -> tuple[Experience, dict[str, Statistic]]:
  """(experience with what the weights at the start of a step say of it, metrics)."""
  seen = gap(scores, experience)
  logp_old_BL = jax.lax.stop_gradient(scores.logp_BL)
  experience = experience.replace(logp_old_BL=logp_old_BL)
  if importance_cap:
    weight_BL, more = importance(scores, experience, importance_cap)
    experience, seen = experience.replace(importance_BL=weight_BL), seen | more
  return experience, seen


def importance(
  scores: TokenScores, experience: Experience, cap: float
) -> tuple[jax.Array, dict[str, Statistic]]:
  """Truncated importance weights min(pi_old / mu, cap), without gradient.

  pi_old is the policy at the start of a step, mu what a token was drawn from: older
  weights, or the same ones computed otherwise (Espeholt et al., arXiv 1802.01561, for
  returns; of language models' tokens Yao et al. 2025, "Your Efficient RL Framework
  Secretly Brings You Off-Policy RL Training").

  Returns:
    (weight_BL, 1 outside of the mask, metrics).
  """
  inside_BL = experience.rows.mask_BL > 0
  d_BL = scores.shaped_logp_BL - experience.logp_behaviour_BL
  ratio_BL = jnp.exp(jax.lax.stop_gradient(jnp.where(inside_BL, d_BL, 0.0)))
  count = inside_BL.sum().astype(jnp.float32)
  weight_BL = jnp.minimum(ratio_BL, cap)
  return weight_BL, {
    "policy/importance_mean": Mean((weight_BL * inside_BL).sum(), count),
    "policy/importance_capped": Mean(((ratio_BL > cap) & inside_BL).sum() * 1.0, count),
  }


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
