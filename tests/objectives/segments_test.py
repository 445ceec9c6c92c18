"""Sums and means of answers in packed rows."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.objectives import segments
from tests.objectives.laid import Layout

# Answers of two tokens and of one, one that is not trained on, padding; then of three.
MASK = np.asarray([[0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]], np.float32)
SEGMENTS = np.asarray([[1, 1, 1, 2, 2, 3, 0], [1, 1, 0, 0, 4, 4, 4]])
X = np.asarray([[9, 1, 2, 9, 4, 9, 9], [9, np.nan, 9, np.inf, 5, 6, 1]], np.float32)


def test_by_hand():
  total = segments.total(X, MASK, SEGMENTS)
  np.testing.assert_array_equal(
    total, [[3, 3, 3, 4, 4, 0, 0], [0, 0, 0, 0, 12, 12, 12]]
  )
  mean = segments.mean(X, MASK, SEGMENTS)
  np.testing.assert_array_equal(
    mean, [[1.5, 1.5, 1.5, 4, 4, 0, 0], [0, 0, 0, 0, 4, 4, 4]]
  )


def test_gradient():
  """Of sum over tokens of c * mean: the answer's sum of c over its length."""
  weight = np.asarray([[0, 1, 3, 0, 5, 0, 0], [0, 0, 0, 0, 3, 6, 9]], np.float32)

  def value(x):
    return (weight * segments.mean(x, MASK, SEGMENTS)).sum()

  want = [[0, 2, 2, 0, 5, 0, 0], [0, 0, 0, 0, 6, 6, 6]]
  np.testing.assert_array_equal(jax.grad(value)(X), want)


def test_packing_padding_and_order_change_nothing():
  rng = np.random.default_rng(0)
  lengths = np.asarray([3, 1, 5, 2, 4])
  values = [rng.normal(size=n) for n in lengths]
  for order, settings in (
    (range(5), {"per_row": 5}),
    ((4, 2, 0, 1, 3), {"per_row": 2, "padding": 6}),
    ((1, 0, 3, 2, 4), {"per_row": 1, "padding": 0}),
  ):
    layout = Layout(lengths[list(order)], **settings)
    x_BL = layout.rows([values[i] for i in order]).astype(jnp.float32)
    got = jax.jit(segments.mean)(x_BL, layout.mask_BL, layout.segments_BL)
    for i, own in zip(order, layout.answers(got), strict=True):
      np.testing.assert_allclose(own, values[i].mean(), rtol=1e-5)
