"""Corners of the clip: value, gradient, and which tokens count as clipped."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from r1jax.objectives.policy import clip_fraction, clipped_surrogate


class ClipTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("gain_saturates", 1.5, +1.0, 0.2, -1.2, False),
    ("gain_still_free", 0.5, +1.0, 0.2, -0.5, True),
    ("harm_saturates", 0.5, -1.0, 0.2, 0.8, False),
    ("harm_still_free", 1.5, -1.0, 0.2, 1.5, True),
    ("r1_gain_saturates_at_11", 12.0, +1.0, 10.0, -11.0, False),
    ("r1_harm_never_saturates", 12.0, -1.0, 10.0, 12.0, True),
    ("r1_harm_near_zero_ratio", 1e-4, -1.0, 10.0, 1e-4, True),
    ("r1_gain_below_11", 10.9, +1.0, 10.0, -10.9, True),
    ("no_advantage", 3.0, 0.0, 0.2, 0.0, False),
  )
  def test_corners(self, ratio, adv, clip, want_cost, want_gradient):
    bounds = {"clip_low": clip, "clip_high": clip}
    old, adv = jnp.full((1, 1), -2.0), jnp.full((1, 1), adv)

    def cost(logp):
      return clipped_surrogate(logp, old, adv, **bounds).sum()

    logp = old + jnp.log(ratio)
    got, gradient = jax.value_and_grad(cost)(logp)
    np.testing.assert_allclose(got, want_cost, rtol=1e-5)
    self.assertEqual(bool(gradient[0, 0] != 0.0), want_gradient)
    clipped = clip_fraction(logp, old, adv, **bounds)[0, 0]
    self.assertEqual(bool(clipped), not want_gradient and bool(adv[0, 0] != 0))

  def test_bounds_are_two_settings(self):
    old, logp = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.5, 0.5]]))
    adv = jnp.array([[1.0, -1.0]])
    got = clipped_surrogate(logp, old, adv, clip_low=0.2, clip_high=0.28)
    np.testing.assert_allclose(got, [[-1.28, 0.8]], rtol=1e-6)
    for low, high, want in ((0.2, 0.6, [[0, 1]]), (0.6, 0.28, [[1, 0]])):
      got = clip_fraction(logp, old, adv, clip_low=low, clip_high=high)
      np.testing.assert_array_equal(got, want)

  def test_identical_weights_give_the_plain_policy_gradient(self):
    rng = np.random.default_rng(0)
    logp, adv = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)

    def cost(logp):
      return clipped_surrogate(
        logp, jax.lax.stop_gradient(logp), adv, clip_low=0.2, clip_high=0.2
      ).sum()

    np.testing.assert_allclose(jax.grad(cost)(logp), -adv, rtol=1e-6)
    clipped = clip_fraction(logp, logp, adv, clip_low=0.2, clip_high=0.2)
    self.assertEqual(float(clipped.sum()), 0.0)

  def test_gradient_by_finite_differences(self):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
      old, adv = jnp.asarray(rng.normal(size=(2, 3, 5)))
      logp = old + jnp.asarray(rng.uniform(-0.6, 0.6, (3, 5)))

      def cost(logp):
        return clipped_surrogate(logp, old, adv, clip_low=0.2, clip_high=0.3).sum()

      gradient, step = jax.grad(cost)(logp), 1e-6
      for b, l in np.ndindex(3, 5):
        move = jnp.zeros((3, 5)).at[b, l].set(step)
        want = (cost(logp + move) - cost(logp - move)) / (2 * step)
        np.testing.assert_allclose(gradient[b, l], want, atol=1e-7)

  def test_only_the_new_log_prob_is_differentiated(self):
    def cost(logp, old, adv):
      return clipped_surrogate(logp, old, adv, clip_low=9.0, clip_high=9.0).sum()

    arrays = [jnp.full((1, 1), value) for value in (-1.0, -1.2, 2.0)]
    new, old, adv = jax.grad(cost, argnums=(0, 1, 2))(*arrays)
    self.assertNotEqual(float(new[0, 0]), 0.0)
    self.assertEqual(float(old[0, 0]), 0.0)
    self.assertEqual(float(adv[0, 0]), 0.0)
