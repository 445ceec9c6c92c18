"""R6: estimators and whole divergences against exact ones on a toy vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from r1jax.objectives import kl
from r1jax.objectives.kl import ESTIMATORS

PI = np.array([0.7, 0.2, 0.1])
REF = np.array([0.5, 0.3, 0.2])


def k1(logp, ref):
  return kl.k1(logp, ref, logp)


def k3(logp, ref):
  return kl.k3(logp, ref, logp)


def on_policy(name, logp, ref):
  """For a token drawn from the policy itself."""
  return ESTIMATORS[name](logp, ref, jax.lax.stop_gradient(logp))


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

  @parameterized.parameters(
    ("k1", 0.085123), ("k2", 0.080088), ("k3", 0.085123), ("unbiased", 0.085123)
  )
  def test_expected_value(self, name, want):
    got = (PI * on_policy(name, jnp.log(PI), jnp.log(REF))).sum()
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


@functools.partial(jax.jit, static_argnums=0)
def expected_gradient(name, logits, ref):
  """Sum over the vocabulary of pi(v) times the gradient of the estimate at v."""

  def estimate(logits, token):
    return on_policy(name, jax.nn.log_softmax(logits)[token], jnp.log(ref)[token])

  probs = jax.nn.softmax(logits)
  tokens = jnp.arange(len(ref))
  per_token = jax.vmap(jax.grad(estimate), (None, 0))(logits, tokens)
  return (probs[:, None] * per_token).sum(0)


def by_finite_differences(f, x, step=1e-6):
  moves = step * jnp.eye(len(x))
  slopes = jax.vmap(lambda m: (f(x + m) - f(x - m)) / (2 * step))
  return jax.jit(slopes)(moves)


def test_expected_gradients_against_the_exact_divergences():
  """R6: which divergence each estimator lowers, in sign and in size."""
  vocabulary = 11
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
    np.testing.assert_allclose(got("unbiased"), want_reverse, atol=1e-8)
    np.testing.assert_allclose(got("k1"), np.zeros(vocabulary), atol=1e-12)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_gradient_of_one_token_by_finite_differences(name):
  with jax.enable_x64(True):
    ref = jnp.asarray([-0.3, -1.0, -2.5, -4.0])
    logp = jnp.asarray([-0.9, -1.0, -0.5, -4.2])
    old = jnp.asarray([-1.1, -0.8, -0.5, -3.0])

    def total(logp):
      return ESTIMATORS[name](logp, ref, old).sum()

    np.testing.assert_allclose(
      jax.grad(total)(logp), by_finite_differences(total, logp), atol=1e-7
    )
    for other in (1, 2):
      by_other = jax.grad(lambda *x: ESTIMATORS[name](*x).sum(), argnums=other)
      np.testing.assert_array_equal(by_other(logp, ref, old), np.zeros(4))


@pytest.mark.parametrize("name", ["k2", "k3", "unbiased"])
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


def test_the_unbiased_estimator_off_policy():
  """Over tokens of an older policy: value and gradient are still of KL(pi || ref)."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(7)
    logits, older, ref = (jnp.asarray(rng.normal(size=5)) for _ in range(3))
    old, ref = jax.nn.log_softmax(older), jax.nn.log_softmax(ref)

    def expected(logits):
      logp = jax.nn.log_softmax(logits)
      return (jnp.exp(old) * kl.unbiased(logp, ref, old)).sum()

    def exact(logits):
      return kl.reverse(jax.nn.log_softmax(logits), ref)

    np.testing.assert_allclose(expected(logits), exact(logits), rtol=1e-9)
    np.testing.assert_allclose(
      jax.grad(expected)(logits), jax.grad(exact)(logits), atol=1e-9
    )


def test_whole_divergences_by_hand():
  pi, ref = jnp.log(PI), jnp.log(REF)
  np.testing.assert_allclose(kl.reverse(pi, ref), 0.085123, atol=1e-6)
  np.testing.assert_allclose(kl.forward(pi, ref), 0.092033, atol=1e-6)
  middle = 0.3 * REF + 0.7 * PI
  want = 0.3 * divergence(REF, middle) + 0.7 * divergence(PI, middle)
  got = kl.generalised(jnp.stack([pi, ref]), jnp.stack([ref, ref]), beta=0.3)
  np.testing.assert_allclose(got, [want, 0.0], atol=1e-7)


def test_the_generalised_divergence_goes_from_forward_to_reverse():
  pi, ref = jnp.log(PI), jnp.log(REF)
  with jax.enable_x64(True):
    for beta, end in ((1e-4, kl.forward), (1 - 1e-4, kl.reverse)):
      got = kl.generalised(pi, ref, beta=beta) / (beta * (1 - beta))
      np.testing.assert_allclose(got, end(pi, ref), rtol=1e-3)
  for beta, end in ((0.0, kl.forward), (1.0, kl.reverse)):
    np.testing.assert_array_equal(kl.generalised(pi, ref, beta=beta), end(pi, ref))


@pytest.mark.parametrize(
  "function",
  [kl.reverse, kl.forward, lambda pi, ref: kl.generalised(pi, ref, beta=0.4)],
  ids=["reverse", "forward", "generalised"],
)
def test_whole_divergences_gradient_by_finite_differences(function):
  with jax.enable_x64(True):
    rng = np.random.default_rng(2)
    logits, ref = jnp.asarray(rng.normal(size=(2, 6)))
    ref = jax.nn.log_softmax(ref)

    def value(logits):
      return function(jax.nn.log_softmax(logits), ref)

    want = by_finite_differences(value, logits)
    np.testing.assert_allclose(jax.grad(value)(logits), want, atol=1e-8)


@pytest.mark.parametrize("function", [kl.reverse, kl.forward])
def test_entries_without_probability_add_nothing(function):
  """A vocabulary that ends in padding has logits of -inf there."""
  pi, ref = (jnp.log(jnp.asarray([*p, 0.0])) for p in (PI, REF))
  got, slope = jax.value_and_grad(lambda pi: function(pi, ref))(pi)
  want = function(pi[:3], ref[:3])
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert np.isfinite(slope).all()
  assert slope[3] == 0


def test_the_adaptive_coefficient():
  """Its error is bounded by 0.2, and at the target nothing moves."""
  settings = {"target": 6.0, "horizon": 10_000, "num_answers": 512}
  assert kl.adapted(0.1, 6.0, **settings) == 0.1
  assert kl.adapted(0.1, 6.6, **settings) == pytest.approx(0.1 * (1 + 0.1 * 0.0512))
  assert kl.adapted(0.1, 60.0, **settings) == pytest.approx(0.1 * (1 + 0.2 * 0.0512))
  assert kl.adapted(0.1, 0.0, **settings) == pytest.approx(0.1 * (1 - 0.2 * 0.0512))
