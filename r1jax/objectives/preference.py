"""Losses on pairs of answers of which one is preferred, by people or by a rule.

All read the log-prob of a whole answer, which is a sum over its tokens, and give every
answer an implicit reward in nats: the chosen one of a pair should have the higher.

Letters: P pairs (any leading shape), 2 answers of each: the chosen one comes first.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.errors import InputError, one_of
from r1jax.types import Mean

# (costs of the pairs, rewards of their answers)
Costs = tuple[jax.Array, jax.Array]


def dpo(
  logp_P2: jax.Array, ref_P2: jax.Array, length_P2: jax.Array, *, beta: float
) -> Costs:
  """-log sigmoid of the difference of the rewards beta * (logp - ref).

  Rafailov et al. (arXiv 2305.18290) eq. 7, and below it the reward.
  """
  del length_P2
  reward_P2 = beta * (logp_P2 - jax.lax.stop_gradient(ref_P2))
  return -jax.nn.log_sigmoid(_difference(reward_P2)), reward_P2


def rpo(
  logp_P2: jax.Array,
  ref_P2: jax.Array,
  length_P2: jax.Array,
  *,
  beta: float,
  nll_coef: float,
) -> Costs:
  """`dpo`, and nll_coef times the chosen answer's -logp per token.

  Pang et al. (arXiv 2404.19733) eq. 2, whose alpha is `nll_coef`: the log-prob of what
  is preferred cannot fall as long as that of the other falls faster.
  """
  cost_P, reward_P2 = dpo(logp_P2, ref_P2, length_P2, beta=beta)
  per_token_P = logp_P2[..., 0] / jnp.maximum(length_P2[..., 0], 1)
  return cost_P - nll_coef * per_token_P, reward_P2


def simpo(
  logp_P2: jax.Array,
  ref_P2: None,
  length_P2: jax.Array,
  *,
  beta: float,
  gamma: float,
) -> Costs:
  """-log sigmoid(difference - gamma), the rewards being beta * logp / length.

  Meng et al. (arXiv 2405.14734) eq. 4 and 6. There is no reference.
  """
  del ref_P2
  reward_P2 = beta * logp_P2 / jnp.maximum(length_P2, 1)
  return -jax.nn.log_sigmoid(_difference(reward_P2) - gamma), reward_P2


LOSSES: dict[str, Callable[..., Costs]] = {"dpo": dpo, "rpo": rpo, "simpo": simpo}
WITH_REFERENCE = frozenset({"dpo", "rpo"})


def preference(
  logp_P2: jax.Array,
  ref_P2: jax.Array | None,
  length_P2: jax.Array,
  is_pair_P: jax.Array,
  *,
  kind: str,
  **settings: float,
) -> tuple[jax.Array, jax.Array, dict[str, Mean]]:
  """(sum of a loss over pairs, number of pairs, metrics).

  Args:
    logp_P2: sums of log-probs over the tokens of each answer.
    ref_P2: the same under the reference; None where the loss has none.
    length_P2: tokens of each answer.
    is_pair_P: 1 where there is a pair; elsewhere the others may be anything.
    kind, settings: a name in LOSSES, and what that one takes.
  """
  # What stands in no pair may be infinite, and so would be its gradient.
  inside_P2 = is_pair_P[..., None] > 0
  logp_P2 = jnp.where(inside_P2, logp_P2, 0.0)
  if ref_P2 is not None:
    ref_P2 = jnp.where(inside_P2, ref_P2, 0.0)
  cost_P, reward_P2 = LOSSES[kind](logp_P2, ref_P2, length_P2, **settings)
  total, count = (cost_P * is_pair_P).sum(), is_pair_P.sum()
  reward_P2 = jax.lax.stop_gradient(reward_P2)
  seen = {
    "loss/preference": jax.lax.stop_gradient(cost_P),
    "preference/margin": _difference(reward_P2),
    "preference/accuracy": (_difference(reward_P2) > 0).astype(jnp.float32),
    "preference/reward_chosen": reward_P2[..., 0],
    "preference/reward_rejected": reward_P2[..., 1],
  }
  return total, count, {k: Mean((x * is_pair_P).sum(), count) for k, x in seen.items()}


def settings_of(section: Mapping[str, Any]) -> dict[str, Any]:
  """`kind` and what it takes, of a section that may hold others as None.

  Raises:
    InputError: an unknown kind; a setting that it lacks, does not use or that is out of
      range.
  """
  kind = one_of(section["kind"], LOSSES, key="config.loss.kind")
  given = {k: v for k, v in section.items() if k != "kind" and v is not None}
  parameters = inspect.signature(LOSSES[kind]).parameters.values()
  used = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
  for name in given:
    if name not in used:
      raise InputError(
        f"config.loss.{name}={given[name]} is set, but the loss {kind!r} does not use "
        f"it; it uses {', '.join(used)}: set it to None"
      )
  for name in used:
    if name not in given:
      raise InputError(f"config.loss.{name} is missing, which the loss {kind!r} uses")
    above = name == "beta"
    if not (given[name] > 0 if above else given[name] >= 0):
      allowed = "above 0" if above else "0 or more"
      raise InputError(f"config.loss.{name}={given[name]}: must be {allowed}")
  return {"kind": kind, **given}


def _difference(reward_P2: jax.Array) -> jax.Array:
  return reward_P2[..., 0] - reward_P2[..., 1]
