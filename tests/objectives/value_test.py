"""A critic's loss in every corner, and explained variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import value


@pytest.mark.parametrize(
  ("now", "target", "want_cost", "want_slope"),
  [
    (0.1, 1.0, 0.405, -0.9),  # within the clip of 0.2: the plain error
    (0.5, 1.0, 0.32, 0.0),  # moved 0.5 towards the return: held at 0.2
    (-0.5, 1.0, 1.125, -1.5),  # moved away from it: the plain error is larger
    (1.5, 1.0, 0.32, 0.0),  # past the return, and farther than the clip
    (3.0, 1.0, 2.0, 2.0),  # so far past it that the plain error is larger
  ],
)
def test_corners_of_the_clip(now, target, want_cost, want_slope):
  def cost(v):
    whole = value.value_cost(v[None, None], jnp.zeros((1, 1)), target, clip=0.2)
    return whole.sum()

  got, slope = jax.value_and_grad(cost)(jnp.asarray(now))
  np.testing.assert_allclose(got, want_cost, rtol=1e-6)
  np.testing.assert_allclose(slope, want_slope, rtol=1e-6)


def batch():
  rng = np.random.default_rng(0)
  now, old, returns = rng.normal(size=(3, 4, 6)).astype(np.float32)
  mask = (rng.random((4, 6)) < 0.6).astype(np.float32)
  return now, old, returns, mask, np.broadcast_to(mask.sum(1, keepdims=True), (4, 6))


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_sums_over_masked_tokens_and_splits_add_up(clip):
  """R5; without a clip half the squared error, whatever the old values."""
  now, old, returns, mask, length = batch()
  total, count, seen = value.value_loss(now, old, returns, mask, length, clip=clip)
  near = old + np.clip(now - old, -clip, clip) if clip else now
  cost = 0.5 * np.maximum((now - returns) ** 2, (near - returns) ** 2)
  np.testing.assert_allclose(total, (cost * mask).sum(), rtol=1e-5)
  assert float(count) == mask.sum()
  rows = [
    value.value_loss(
      *(x[b : b + 1] for x in (now, old, returns, mask, length)), clip=clip
    )
    for b in range(4)
  ]
  np.testing.assert_allclose(sum(row[0] for row in rows), total, rtol=1e-5)
  assert ("value/clip_fraction" in seen) == bool(clip)
  if clip:
    share = ((np.abs(now - old) > clip) * mask).sum() / mask.sum()
    np.testing.assert_allclose(seen["value/clip_fraction"].value(), share, rtol=1e-6)


def test_the_gradient_by_finite_differences():
  """In float64, away from the corners."""
  with jax.enable_x64(True):
    now, old, returns, mask, length = (x.astype(np.float64) for x in batch())

    def total(now, reduction):
      return value.value_loss(
        now, old, returns, mask, length, clip=0.3, reduction=reduction
      )[0]

    for reduction in ("token_mean", "sequence_mean"):
      slope = jax.grad(total)(now, reduction)
      for row, column in ((0, 1), (1, 2), (3, 4), (2, 0)):
        step = np.zeros_like(now)
        step[row, column] = 1e-6
        change = total(now + step, reduction) - total(now - step, reduction)
        np.testing.assert_allclose(slope[row, column], change / 2e-6, atol=1e-6)


def test_a_negative_clip_is_refused():
  with pytest.raises(InputError, match=r"config\.critic\.clip=-0\.1"):
    value.value_cost(jnp.zeros((1, 1)), 0.0, 0.0, clip=-0.1)


def test_explained_variance():
  returns = np.asarray([0.0, 1.0, 2.0, 5.0])
  assert value.explained_variance(returns, returns) == 1
  assert value.explained_variance(returns + 3, returns) == 1  # an offset is no spread
  assert value.explained_variance(np.full(4, 2.0), returns) == 0
  assert value.explained_variance(-returns, returns) == -3
  assert value.explained_variance(returns, np.ones(4)) == 0
