"""The policy's loss: ratio, surrogate, correction, KL, entropy and one reduction.

With the ratio and the clip per token and k3 it is the objective of DeepSeek-R1 (arXiv
2501.12948, Eq. 1 and 2) in the per-token form of DeepSeekMath (arXiv 2402.03300,
Eq. 3); `recipes.py` names the other compositions. The loss is -J.

Letters: B rows, L tokens in a row.
"""

import jax
import jax.numpy as jnp

from r1jax.errors import one_of
from r1jax.objectives import kl, policy, reduce
from r1jax.types import Mean


def policy_gradient(
  logp_BL: jax.Array,
  logp_old_BL: jax.Array,
  logp_ref_BL: jax.Array | None,
  adv_BL: jax.Array,
  mask_BL: jax.Array,
  length_BL: jax.Array,
  segments_BL: jax.Array,
  importance_BL: jax.Array | None = None,
  entropy_BL: jax.Array | None = None,
  *,
  ratio: str,
  surrogate: str,
  clip_low: float | None,
  clip_high: float | None,
  clip_dual: float | None,
  gate_positive: float | None,
  gate_negative: float | None,
  kl_coef: float | jax.Array,
  kl_estimator: str,
  entropy_coef: float,
  reduction: str,
  length_constant: float | None,
) -> tuple[jax.Array, jax.Array, dict[str, Mean]]:
  """The loss of some rows as (sum, count), and what to log.

  Sums and counts of all microbatches and hosts are added before the one division.

  Args:
    logp_BL: log-probs under the weights being trained; with `entropy_BL` the only input
      differentiated.
    logp_old_BL: under the weights at the start of a step, at the sampling temperature.
    logp_ref_BL: under the reference, or None where there is no KL term.
    adv_BL: advantage of each token.
    mask_BL: 1 on tokens trained on; elsewhere the other inputs may be anything.
    length_BL: on each token, how many masked-in tokens its answer has.
    segments_BL: int32, the answers of a row are numbered, see `types.TokenRows`.
    importance_BL: weights of the surrogate, see `corrections.importance`; None is 1.
    entropy_BL: of the distribution that each token is drawn from, with a gradient;
      needed where entropy_coef is not 0.
    ratio: a name in `policy.RATIOS`.
    surrogate: a name in `policy.SURROGATES`; it says which of the next five it reads,
      the others may be None.
    kl_coef: weight of the KL term, a number or a traced scalar.
    kl_estimator: a name in `kl.ESTIMATORS`.
    entropy_coef: weight of the entropy bonus, a Python number.
    reduction, length_constant: see `reduce.token_weights`.

  Returns:
    (loss sum, count, metrics). `loss/kl` and `loss/entropy` are without coefficients.
  """
  one_of(ratio, policy.RATIOS, key="config.loss.ratio")
  one_of(surrogate, policy.SURROGATES, key="config.loss.surrogate")
  one_of(kl_estimator, kl.ESTIMATORS, key="config.loss.kl_estimator")
  if logp_ref_BL is None and not (isinstance(kl_coef, int | float) and kl_coef == 0):
    raise ValueError(f"kl_coef={kl_coef} needs log-probs of the reference")
  if entropy_BL is None and entropy_coef != 0:
    raise ValueError(f"entropy_coef={entropy_coef} needs entropies with a gradient")

  # A token outside the mask may hold a log-prob of -inf or NaN. Its cost is dropped in
  # the sum, but 0 * NaN would still reach the gradient through exp().
  inside_BL = mask_BL > 0

  def inside(x_BL):
    return jnp.where(inside_BL, x_BL, 0.0)

  logp_BL, logp_old_BL, adv_BL = map(inside, (logp_BL, logp_old_BL, adv_BL))
  weight_BL, count = reduce.token_weights(
    mask_BL, length_BL, reduction=reduction, length_constant=length_constant
  )
  log_ratio_BL = policy.RATIOS[ratio](logp_BL, logp_old_BL, mask_BL, segments_BL)
  settings = {
    "clip_low": clip_low,
    "clip_high": clip_high,
    "clip_dual": clip_dual,
    "gate_positive": gate_positive,
    "gate_negative": gate_negative,
  }
  cost_BL, clipped_BL = policy.cost(surrogate, logp_BL, log_ratio_BL, adv_BL, settings)
  if importance_BL is not None:
    cost_BL *= jax.lax.stop_gradient(inside(importance_BL))
  loss_sum = reduce.weighted_sum(cost_BL, weight_BL)
  metrics = {"loss/policy": Mean(loss_sum, count)}
  if clipped_BL is not None:
    num_tokens = inside_BL.sum().astype(jnp.float32)
    clipped = Mean((clipped_BL & inside_BL).sum().astype(jnp.float32), num_tokens)
    metrics["policy/clip_fraction"] = clipped
  if logp_ref_BL is not None:
    kl_BL = kl.ESTIMATORS[kl_estimator](logp_BL, inside(logp_ref_BL), logp_old_BL)
    kl_sum = reduce.weighted_sum(kl_BL, weight_BL)
    metrics["loss/kl"] = Mean(kl_sum, count)
    loss_sum += kl_coef * kl_sum
  if entropy_coef != 0:
    entropy_sum = reduce.weighted_sum(inside(entropy_BL), weight_BL)
    metrics["loss/entropy"] = Mean(entropy_sum, count)
    loss_sum -= entropy_coef * entropy_sum
  return loss_sum, count, jax.lax.stop_gradient(metrics)
