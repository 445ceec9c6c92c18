"""What training adds for models with experts: the balance loss and the loads.

Letters: B rows, L tokens in a row, Z layers with experts, E experts.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import InputError
from r1jax.models import moe, transformer
from r1jax.models.config import ModelConfig
from r1jax.training.logprobs import TokenScores
from r1jax.types import Load, Mean, Statistic, TokenRows


def check(
  c: ModelConfig, *, balance_coef: float, bias_rate: float, replay: bool = False
) -> None:
  """Refuses settings out of range, or that do nothing for this model."""
  for key, value in (("balance_coef", balance_coef), ("bias_rate", bias_rate)):
    if not value >= 0:
      raise InputError(f"config.moe.{key}={value!r}: must be 0 or more")
  if c.experts is None and (balance_coef or bias_rate or replay):
    raise InputError(
      f"config.moe: balance_coef={balance_coef}, bias_rate={bias_rate}, "
      f"replay={replay}, but the model {c.name!r} has no experts: leave them off"
    )
  if bias_rate and not c.experts.bias:
    raise InputError(
      f"config.moe.bias_rate={bias_rate}: the routers of {c.name!r} have no bias; "
      "leave it 0, or balance by config.moe.balance_coef"
    )


def balance_loss(
  routed: transformer.Routed, weight_BL: jax.Array, coef: float
) -> tuple[jax.Array, dict[str, Statistic]]:
  """(sum to add to a loss, metrics): coef * balance, weighed like the loss's tokens.

  DeepSeek-V3 (arXiv 2412.19437) eq. 17. Departs: sequences count as much as their
  tokens do in the loss, not all alike.
  """
  layers = routed.experts_ZBLK.shape[0]
  total = (routed.balance_BL * weight_BL).sum()
  seen = Mean(total, weight_BL.sum() * layers)
  return coef * total, jax.lax.stop_gradient({"moe/balance": seen})


def loads(c: ModelConfig, scores: TokenScores, rows: TokenRows) -> dict[str, Load]:
  """How many tokens, padding aside, each expert got; nothing without experts.

  What went through them is counted: a shared prompt once for each row that it lies in.
  """
  valid_BL = (jnp.asarray(rows.segments_BL) > 0).astype(jnp.float32)
  routed = {"moe/load": scores.routed, "moe/load_mtp": scores.further_routed}
  return {
    name: Load(moe.load(one.experts_ZBLK, valid_BL, c.experts.count))
    for name, one in routed.items()
    if one is not None
  }


def balanced(params: dict, seen: dict[str, Statistic], rate: float) -> dict:
  """Parameters with the routers' biases moved against the loads of a whole batch.

  Args:
    seen: merged metrics with what `loads` counted.
  """
  params = dict(params)
  for stack, name in (("layers", "moe/load"), ("mtp", "moe/load_mtp")):
    if name in seen:
      layers = params[stack]
      bias_ZE = moe.updated_bias(layers["moe"]["bias"], seen[name].tokens_ZE, rate)
      params[stack] = {**layers, "moe": {**layers["moe"], "bias": bias_ZE}}
  return params
