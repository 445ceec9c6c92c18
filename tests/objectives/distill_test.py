"""Distillation losses, and the signal on the student's own tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import distill, kl

STUDENT, TEACHER = jax.nn.log_softmax(
  jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 9)), jnp.float32)
)


@pytest.mark.parametrize(
  ("divergence", "beta", "want"),
  [
    ("forward", None, kl.forward(STUDENT, TEACHER)),
    ("reverse", None, kl.reverse(STUDENT, TEACHER)),
    ("generalised", 0.3, kl.generalised(STUDENT, TEACHER, beta=0.3)),
  ],
)
def test_each_divergence_per_token(divergence, beta, want):
  def total(student, teacher):
    got = distill.token_divergence(student, teacher, divergence=divergence, beta=beta)
    return got.sum(), got

  slopes, got = jax.grad(total, argnums=(0, 1), has_aux=True)(STUDENT, TEACHER)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert slopes[0].any()
  assert not slopes[1].any()


def test_forward_has_cross_entropys_gradient():
  """By logits it is the student's probabilities less the teacher's."""
  logits = jnp.asarray([0.3, -1.0, 0.7])
  teacher = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))

  def loss(logits):
    student = jax.nn.log_softmax(logits)
    return distill.token_divergence(student, teacher, divergence="forward", beta=None)

  want = jax.nn.softmax(logits) - jnp.exp(teacher)
  np.testing.assert_allclose(jax.grad(loss)(logits), want, atol=1e-6)


def test_sum_and_count_over_trained_tokens():
  mask = jnp.asarray([[1, 0, 1]])
  total, count = distill.distillation(jnp.asarray([[0.5, jnp.nan, 0.25]]), mask)
  assert (float(total), float(count)) == (0.75, 2.0)


def test_the_on_policy_signal_worked_numbers():
  logp, teacher = jnp.asarray([[-1.0, -0.5]]), jnp.asarray([[-0.2, -3.0]])
  got = distill.on_policy_advantage(logp, teacher)
  np.testing.assert_allclose(got, [[0.8, -2.5]], rtol=1e-6)
  slope = jax.grad(lambda x: distill.on_policy_advantage(x, teacher).sum())(logp)
  assert not slope.any()


def test_the_on_policy_signal_is_the_gradient_of_the_reverse_divergence():
  """E over the student's tokens of -advantage * grad logp."""
  with jax.enable_x64(True):
    logits, teacher = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)))
    teacher = jax.nn.log_softmax(teacher)

    def surrogate(logits):
      logp = jax.nn.log_softmax(logits)
      advantage = distill.on_policy_advantage(logp, teacher)
      return (jax.lax.stop_gradient(jnp.exp(logp)) * -advantage * logp).sum()

    def exact(logits):
      return kl.reverse(jax.nn.log_softmax(logits), teacher)

    got, want = (jax.grad(f)(logits) for f in (surrogate, exact))
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_bad_settings_name_their_key():
  for divergence, beta, named in (
    ("sideways", None, r"loss\.divergence='sideways'"),
    ("generalised", None, r"loss\.beta=None.*'generalised'"),
    ("generalised", 1.5, r"loss\.beta=1\.5"),
    ("forward", 0.5, r"loss\.beta=0\.5.*changes nothing"),
  ):
    with pytest.raises(InputError, match=named):
      distill.token_divergence(STUDENT, TEACHER, divergence=divergence, beta=beta)
