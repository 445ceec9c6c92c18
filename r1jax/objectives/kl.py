"""Divergence of the policy from a reference, in nats.

`ESTIMATORS` read the log-probs of one sampled token and differ in the gradient that
they have when used as a loss. Below, pi is the policy, E is over tokens sampled from
it, and d = logp_ref - logp. All have E[value] = KL(pi || ref), k2 only to second order.
http://joschu.net/blog/kl-approx.html names the first three.

`forward`, `reverse` and `generalised` read whole distributions.

Letters: B rows, L tokens in a row, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np


def k1(logp_BL: jax.Array, logp_ref_BL: jax.Array, logp_old_BL: jax.Array) -> jax.Array:
  """-d. Unbiased, of either sign.

  Gradient: that of logp, whatever the reference is, so its expectation is 0. As a loss
  it holds nothing back; its place is in a log, or as a penalty inside the reward.
  """
  del logp_old_BL
  return logp_BL - jax.lax.stop_gradient(logp_ref_BL)


def k2(logp_BL: jax.Array, logp_ref_BL: jax.Array, logp_old_BL: jax.Array) -> jax.Array:
  """d**2 / 2. Biased, never negative.

  Gradient: -d times that of logp, whose expectation is the gradient of KL(pi || ref).
  """
  del logp_old_BL
  return 0.5 * (jax.lax.stop_gradient(logp_ref_BL) - logp_BL) ** 2


def k3(logp_BL: jax.Array, logp_ref_BL: jax.Array, logp_old_BL: jax.Array) -> jax.Array:
  """exp(d) - d - 1. Unbiased, never negative.

  DeepSeekMath (arXiv 2402.03300) Eq. 4 and DeepSeek-R1 (arXiv 2501.12948) Eq. 2.
  Gradient: 1 - exp(d) times that of logp, whose expectation is the gradient of
  KL(ref || pi): the value estimates one direction of the divergence and the gradient
  lowers the other.
  """
  del logp_old_BL
  d_BL = jax.lax.stop_gradient(logp_ref_BL) - logp_BL
  return jnp.expm1(d_BL) - d_BL


def unbiased(
  logp_BL: jax.Array, logp_ref_BL: jax.Array, logp_old_BL: jax.Array
) -> jax.Array:
  """pi / pi_old times k3, for tokens drawn from pi_old: DeepSeek-V3.2 (2512.02556).

  Gradient: -d pi / pi_old times that of logp, whose expectation over pi_old is the
  gradient of KL(pi || ref): value and gradient are of one divergence.
  """
  ratio_BL = jnp.exp(logp_BL - jax.lax.stop_gradient(logp_old_BL))
  return ratio_BL * k3(logp_BL, logp_ref_BL, logp_old_BL)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "unbiased": unbiased}


def reverse(logp_V: jax.Array, logp_ref_V: jax.Array) -> jax.Array:
  """KL(pi || ref) of log-probs [..., V] -> [...]; seeks a mode of the reference."""
  return _divergence(logp_V, logp_ref_V)


def forward(logp_V: jax.Array, logp_ref_V: jax.Array) -> jax.Array:
  """KL(ref || pi) of log-probs [..., V] -> [...]; covers all of the reference."""
  return _divergence(logp_ref_V, logp_V)


def generalised(logp_V: jax.Array, logp_ref_V: jax.Array, *, beta: float) -> jax.Array:
  """Generalised Jensen-Shannon divergence of log-probs [..., V] -> [...].

  beta KL(ref || m) + (1 - beta) KL(pi || m) with m = beta ref + (1 - beta) pi: GKD
  (Agarwal et al., arXiv 2306.13649) Eq. 1. Over beta (1 - beta) it tends to `forward`
  for beta to 0 and to `reverse` for beta to 1, where it is 0 itself; so the ends mean
  those two, as they do in GKD.

  Args:
    beta: in [0, 1].
  """
  if beta == 0:
    return forward(logp_V, logp_ref_V)
  if beta == 1:
    return reverse(logp_V, logp_ref_V)
  middle_V = jnp.logaddexp(np.log(beta) + logp_ref_V, np.log1p(-beta) + logp_V)
  of_ref = _divergence(logp_ref_V, middle_V)
  return beta * of_ref + (1 - beta) * _divergence(logp_V, middle_V)


def _divergence(logp_V, other_V):
  """sum p (log p - log q); an entry of probability 0 adds nothing, in its slope too."""
  has_mass_V = logp_V > -jnp.inf
  safe_V = jnp.where(has_mass_V, logp_V, 0.0)
  terms_V = jnp.exp(safe_V) * (safe_V - jnp.where(has_mass_V, other_V, 0.0))
  return jnp.where(has_mass_V, terms_V, 0.0).sum(axis=-1)


def adapted(
  coef: float, observed: float, *, target: float, horizon: float, num_answers: int
) -> float:
  """The next KL coefficient, from the divergence that was seen in a step.

  Ziegler et al. (arXiv 1909.08593) section 2.2: a proportional controller in log space,
  whose error is bounded by 0.2 on either side.

  Args:
    observed, target: nats, both of a token or both of an answer.
    horizon: answers over which an error of e multiplies the coefficient by about
      exp(e).
  """
  error = min(max(observed / target - 1, -0.2), 0.2)
  return coef * (1 + error * num_answers / horizon)
