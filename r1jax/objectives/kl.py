"""Per-token estimates of the divergence of the policy from the reference, in nats.

All read the log-probs of one sampled token and differ in the gradient that they have
when used as a loss. Below, pi is the policy, E is over tokens sampled from it, and
d = logp_ref - logp. All three have E[value] = KL(pi || ref), k2 only to second order.
http://joschu.net/blog/kl-approx.html names them.

Letters: B rows, L tokens in a row.
"""

import jax
import jax.numpy as jnp


def k1(logp_BL: jax.Array, logp_ref_BL: jax.Array) -> jax.Array:
  """-d. Unbiased, of either sign.

  Gradient: that of logp, whatever the reference is, so its expectation is 0. As a loss
  it holds nothing back; its place is in a log, or as a penalty inside the reward.
  """
  return logp_BL - jax.lax.stop_gradient(logp_ref_BL)


def k2(logp_BL: jax.Array, logp_ref_BL: jax.Array) -> jax.Array:
  """d**2 / 2. Biased, never negative.

  Gradient: -d times that of logp, whose expectation is the gradient of KL(pi || ref).
  """
  return 0.5 * (jax.lax.stop_gradient(logp_ref_BL) - logp_BL) ** 2


def k3(logp_BL: jax.Array, logp_ref_BL: jax.Array) -> jax.Array:
  """exp(d) - d - 1. Unbiased, never negative.

  DeepSeekMath (arXiv 2402.03300) Eq. 4 and DeepSeek-R1 (arXiv 2501.12948) Eq. 2.
  Gradient: 1 - exp(d) times that of logp, whose expectation is the gradient of
  KL(ref || pi): the value estimates one direction of the divergence and the gradient
  lowers the other.
  """
  d_BL = jax.lax.stop_gradient(logp_ref_BL) - logp_BL
  return jnp.expm1(d_BL) - d_BL


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
