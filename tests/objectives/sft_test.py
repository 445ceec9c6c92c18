"""Cross-entropy as a sum and a count."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.objectives.sft import cross_entropy


def test_mean_over_trained_tokens_only():
  logp = jnp.array([[-1.0, -2.0, jnp.nan], [-4.0, -jnp.inf, -8.0]])
  mask = jnp.array([[1, 1, 0], [0, 0, 1]])
  total, count = cross_entropy(logp, mask)
  assert (float(total), float(count)) == (11.0, 3.0)
  gradient = jax.grad(lambda logp: cross_entropy(logp, mask)[0])(logp)
  np.testing.assert_array_equal(gradient, -mask)


def test_splits_add_up():
  """R5: unequal token counts per part."""
  rng = np.random.default_rng(0)
  logp = jnp.asarray(-rng.exponential(size=(8, 6)), jnp.float32)
  mask = jnp.asarray(rng.integers(0, 2, (8, 6)))
  total, count = cross_entropy(logp, mask)
  parts = [cross_entropy(logp[b : b + 1], mask[b : b + 1]) for b in range(8)]
  np.testing.assert_allclose(sum(p[0] for p in parts), total, rtol=1e-6)
  assert float(sum(p[1] for p in parts)) == float(count)
