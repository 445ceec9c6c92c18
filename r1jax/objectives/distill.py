"""Distillation of a teacher's log-probs into a student.

Of whole distributions (`DIVERGENCES`, on texts of anyone), or of the tokens that the
student drew (`on_policy_advantage`, which `policy_gradient` learns from).

Letters: B rows, L tokens in a row, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from r1jax.errors import InputError, one_of
from r1jax.objectives import kl, reduce

DIVERGENCES = {
  "forward": kl.forward,
  "reverse": kl.reverse,
  "generalised": kl.generalised,
}


def token_divergence(
  logp_V: jax.Array, teacher_V: jax.Array, *, divergence: str, beta: float | None
) -> jax.Array:
  """Divergence of the student from the teacher at each token, [..., V] -> [...].

  "forward" is Hinton et al. (arXiv 1503.02531) without the teacher's entropy in its
  gradient, "generalised" that of GKD (arXiv 2306.13649). The teacher has no gradient.

  Args:
    logp_V, teacher_V: log-probs of a whole vocabulary, the same one.
    divergence: a name in `DIVERGENCES`.
    beta: of "generalised" alone, in [0, 1]; None elsewhere.
  """
  one_of(divergence, DIVERGENCES, key="config.loss.divergence")
  function = DIVERGENCES[divergence]
  if divergence == "generalised":
    if beta is None or not 0 <= beta <= 1:
      raise InputError(
        f"config.loss.beta={beta} with config.loss.divergence='generalised': give a "
        "number between 0 (forward) and 1 (reverse)"
      )
    function = functools.partial(function, beta=beta)
  elif beta is not None:
    raise InputError(
      f"config.loss.beta={beta} with config.loss.divergence={divergence!r} changes "
      "nothing: leave it None, or choose 'generalised'"
    )
  return function(logp_V, jax.lax.stop_gradient(teacher_V))


def distillation(
  divergence_BL: jax.Array, mask_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(sum of the divergence over trained tokens, number of them)."""
  weight_BL, count = reduce.token_weights(mask_BL, mask_BL, reduction="token_mean")
  return reduce.weighted_sum(divergence_BL, weight_BL), count


def on_policy_advantage(logp_BL: jax.Array, teacher_BL: jax.Array) -> jax.Array:
  """-(logp - teacher) of tokens that the student drew, in nats; no gradient.

  As an advantage of the surrogate its gradient is that of the reverse KL of each token,
  later tokens left out (discount 0): Lu et al. 2025, "On-Policy Distillation"; MiniLLM
  (arXiv 2306.08543) has it with what follows.
  """
  return jax.lax.stop_gradient(jnp.asarray(teacher_BL) - logp_BL)
