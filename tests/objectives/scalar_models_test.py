"""Losses of reward models, and what is done with their scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.objectives import scalar_models as models


def test_pairwise_worked_numbers():
  np.testing.assert_allclose(models.pairwise(2.0, 1.0), 0.313262, atol=1e-6)
  np.testing.assert_allclose(models.pairwise(1.5, 1.5), np.log(2), atol=1e-6)
  # A margin asks for that much more.
  np.testing.assert_allclose(models.pairwise(3.0, 1.0, 1.0), 0.313262, atol=1e-6)


def test_pairwise_depends_on_the_difference_alone():
  chosen, rejected = jnp.asarray([[2.0, -1.0], [0.3, 0.8]])
  want = models.pairwise(chosen, rejected)
  np.testing.assert_allclose(models.pairwise(chosen + 5, rejected + 5), want, rtol=1e-5)
  assert np.isfinite(models.pairwise(jnp.asarray([-200.0]), 200.0)).all()


@pytest.mark.parametrize(
  ("label", "prob", "want"),
  [(1, 0.9, 0.105361), (0, 0.2, 0.223144), (0.375, 0.4, 0.662875)],
)
def test_pointwise_worked_numbers(label, prob, want):
  score = np.log(prob / (1 - prob))
  np.testing.assert_allclose(models.pointwise(score, label), want, atol=1e-6)
  slope = jax.grad(models.pointwise)(score, float(label))
  np.testing.assert_allclose(slope, prob - label, atol=1e-6)


def test_gradients_by_finite_differences():
  with jax.enable_x64(True):
    step = 1e-6
    for function, x, rest in (
      (models.pairwise, 0.4, (1.1, 0.2)),
      (models.pointwise, -0.7, (0.3,)),
    ):
      got = jax.grad(function)(x, *rest)
      want = (function(x + step, *rest) - function(x - step, *rest)) / (2 * step)
      np.testing.assert_allclose(got, want, atol=1e-8)


def test_scores_of_steps_become_one():
  prob_K = np.asarray([0.9, 0.8, 0.95])
  assert models.AGGREGATIONS["min"](prob_K) == pytest.approx(0.8)
  assert models.AGGREGATIONS["product"](prob_K) == pytest.approx(0.684)


def test_labels_of_steps_from_rollouts():
  hits_K = np.asarray([8, 3, 0])
  np.testing.assert_array_equal(models.hard_labels(hits_K), [1, 1, 0])
  np.testing.assert_array_equal(models.soft_labels(hits_K, 8), [1, 0.375, 0])


def test_a_vote_adds_scores_up():
  assert models.vote(["A", "B", "B", "C"], [0.9, 0.5, 0.45, 0.1]) == "B"
  assert models.vote(["A", "B"], [0.5, 0.5]) == "A"
