"""R6: KL estimators against the exact divergence on a toy vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from r1jax.objectives.kl import ESTIMATORS, k1, k3

PI = np.array([0.7, 0.2, 0.1])
REF = np.array([0.5, 0.3, 0.2])


def divergence(p, q):
  return (p * (jnp.log(p) - jnp.log(q))).sum()


class WorkedNumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    (-1.0, 0.367879),
    (-0.5, 0.106531),
    (-np.log(2), 0.193147),
    (0.0, 0.0),
    (0.1, 0.005171),
    (0.5, 0.148721),
    (np.log(2), 0.306853),
    (1.0, 0.718282),
  )
  def test_k3_by_difference(self, d, want):
    logp = jnp.full((1, 1), -1.3)
    np.testing.assert_allclose(k3(logp, logp + d)[0, 0], want, atol=1e-6)

  @parameterized.parameters((np.log(2), -1.0), (-np.log(2), 0.5), (0.0, 0.0))
  def test_k3_gradient_by_difference(self, d, want):
    got = jax.grad(lambda logp: k3(logp, jnp.full((1, 1), d)).sum())(jnp.zeros((1, 1)))
    np.testing.assert_allclose(got[0, 0], want, atol=1e-6)

  @parameterized.parameters(("k1", 0.085123), ("k2", 0.080088), ("k3", 0.085123))
  def test_expected_value(self, name, want):
    got = (PI * ESTIMATORS[name](jnp.log(PI), jnp.log(REF))).sum()
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(divergence(PI, REF), 0.085123, atol=1e-6)
    np.testing.assert_allclose(divergence(REF, PI), 0.092033, atol=1e-6)

  def test_k3_of_each_outcome(self):
    got = k3(jnp.log(PI), jnp.log(REF))
    np.testing.assert_allclose(got, [0.050758, 0.094535, 0.306853], atol=1e-6)

  def test_small_differences_keep_their_digits(self):
    """exp(d) - 1 by subtraction would give 0 or 1.2e-7 here in float32."""
    got = k3(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3))
    np.testing.assert_allclose(got[0, 0], 5.0016671e-07, rtol=1e-3)


def expected_gradient(name, logits, ref):
  """Sum over the vocabulary of pi(v) times the gradient of the estimate at v."""

  def estimate(logits, token):
    return ESTIMATORS[name](jax.nn.log_softmax(logits)[token], jnp.log(ref)[token])

  probs = jax.nn.softmax(logits)
  tokens = jnp.arange(len(ref))
  per_token = jax.vmap(jax.grad(estimate), (None, 0))(logits, tokens)
  return (probs[:, None] * per_token).sum(0)


def by_finite_differences(f, x, step=1e-6):
  moves = step * jnp.eye(len(x))
  return jnp.stack([(f(x + m) - f(x - m)) / (2 * step) for m in moves])


@pytest.mark.parametrize("vocabulary", [3, 11])
def test_expected_gradients_against_the_exact_divergences(vocabulary):
  """R6: which divergence each estimator lowers, in sign and in size."""
  rng = np.random.default_rng(vocabulary)
  with jax.enable_x64(True):
    logits = jnp.asarray(rng.normal(size=vocabulary))
    ref = jax.nn.softmax(jnp.asarray(rng.normal(size=vocabulary)))

    def reverse(logits):
      return divergence(jax.nn.softmax(logits), ref)

    def forward(logits):
      return divergence(ref, jax.nn.softmax(logits))

    want_reverse = by_finite_differences(reverse, logits)
    want_forward = by_finite_differences(forward, logits)
    assert float(jnp.abs(want_reverse - want_forward).max()) > 1e-3

    def got(name):
      return expected_gradient(name, logits, ref)

    np.testing.assert_allclose(got("k3"), want_forward, atol=1e-8)
    np.testing.assert_allclose(got("k2"), want_reverse, atol=1e-8)
    np.testing.assert_allclose(got("k1"), np.zeros(vocabulary), atol=1e-12)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_gradient_of_one_token_by_finite_differences(name):
  with jax.enable_x64(True):
    ref = jnp.asarray([-0.3, -1.0, -2.5, -4.0])
    logp = jnp.asarray([-0.9, -1.0, -0.5, -4.2])

    def total(logp):
      return ESTIMATORS[name](logp, ref).sum()

    np.testing.assert_allclose(
      jax.grad(total)(logp), by_finite_differences(total, logp), atol=1e-7
    )
    by_ref = jax.grad(lambda ref: ESTIMATORS[name](logp, ref).sum())(ref)
    np.testing.assert_array_equal(by_ref, np.zeros(4))


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_descent_brings_the_policy_to_the_reference(name):
  """R6: the sign, seen from its effect; k1 would leave the policy where it is."""
  ref = jnp.asarray(REF)
  logits = jnp.log(jnp.asarray(PI))
  before = divergence(jax.nn.softmax(logits), ref)
  for _ in range(50):
    logits -= 0.5 * expected_gradient(name, logits, ref)
  assert divergence(jax.nn.softmax(logits), ref) < 0.05 * before


def test_k1_has_either_sign():
  assert k1(jnp.zeros(1), jnp.ones(1))[0] == -1
  assert k1(jnp.ones(1), jnp.zeros(1))[0] == 1
