"""GRPO as R1 used it: clipped surrogate plus KL to a reference, reduced with one count.

DeepSeek-R1 report (arXiv 2501.12948) Eq. 1 and 2, in the per-token form of DeepSeekMath
(arXiv 2402.03300) Eq. 3. The loss is -J, and the KL is in the loss, not in the reward.

Letters: B rows, L tokens in a row.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import one_of
from r1jax.objectives import kl, policy, reduce
from r1jax.types import Mean


def grpo(
  logp_BL: jax.Array,
  logp_old_BL: jax.Array,
  logp_ref_BL: jax.Array | None,
  adv_BL: jax.Array,
  mask_BL: jax.Array,
  length_BL: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
  kl_coef: float,
  kl_estimator: str = "k3",
  reduction: str = "sequence_mean",
  length_constant: float | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Mean]]:
  """The loss of some rows as (sum, count), and what to log.

  Sums and counts of all microbatches and hosts are added before the one division.

  Args:
    logp_BL: log-probs under the weights being trained; the only input differentiated.
    logp_old_BL: under the weights that sampled, at the sampling temperature.
    logp_ref_BL: under the reference, or None when `kl_coef` is 0.
    adv_BL: advantage of the answer that a token belongs to.
    mask_BL: 1 on tokens trained on; elsewhere the other inputs may be anything.
    length_BL: on each token, how many masked-in tokens its answer has.
    clip_low, clip_high: the allowed ratio is [1 - clip_low, 1 + clip_high].
    kl_coef: weight of the KL term, a Python number.
    kl_estimator: a name in `kl.ESTIMATORS`.
    reduction, length_constant: see `reduce.token_weights`.

  Returns:
    (loss sum, count, metrics). `loss/kl` is the estimate itself, before `kl_coef`.
  """
  one_of(kl_estimator, kl.ESTIMATORS, key="config.loss.kl_estimator")
  if kl_coef != 0 and logp_ref_BL is None:
    raise ValueError(f"kl_coef={kl_coef} needs log-probs of the reference")

  # A token outside the mask may hold a log-prob of -inf or NaN. Its cost is dropped in
  # the sum, but 0 * NaN would still reach the gradient through exp().
  inside_BL = mask_BL > 0
  logp_BL = jnp.where(inside_BL, logp_BL, 0.0)
  logp_old_BL = jnp.where(inside_BL, logp_old_BL, 0.0)
  adv_BL = jnp.where(inside_BL, adv_BL, 0.0)

  weight_BL, count = reduce.token_weights(
    mask_BL, length_BL, reduction=reduction, length_constant=length_constant
  )
  bounds = {"clip_low": clip_low, "clip_high": clip_high}
  cost_BL = policy.clipped_surrogate(logp_BL, logp_old_BL, adv_BL, **bounds)
  clipped_BL = policy.clip_fraction(logp_BL, logp_old_BL, adv_BL, **bounds)
  policy_sum = loss_sum = reduce.weighted_sum(cost_BL, weight_BL)
  num_tokens = inside_BL.sum().astype(jnp.float32)
  metrics = {
    "loss/policy": Mean(policy_sum, count),
    "policy/clip_fraction": Mean((clipped_BL * inside_BL).sum(), num_tokens),
  }
  if logp_ref_BL is not None:
    logp_ref_BL = jnp.where(inside_BL, logp_ref_BL, 0.0)
    kl_BL = kl.ESTIMATORS[kl_estimator](logp_BL, logp_ref_BL)
    kl_sum = reduce.weighted_sum(kl_BL, weight_BL)
    metrics["loss/kl"] = Mean(kl_sum, count)
    loss_sum = policy_sum + kl_coef * kl_sum
  return loss_sum, count, jax.lax.stop_gradient(metrics)
