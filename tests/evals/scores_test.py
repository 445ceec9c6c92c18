"""Accuracy of pairs, AUC and Brier score against their definitions."""

import numpy as np

from r1jax.evals import scores


def test_pairs_of_equal_scores_are_half_right():
  assert scores.pair_accuracy([2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 1.0, -1.0]) == 0.625


def test_auc_is_the_chance_of_the_right_order():
  rng = np.random.default_rng(0)
  score = rng.integers(0, 6, 40)  # with ties
  is_right = rng.random(40) < 0.4
  above = score[is_right][:, None] - score[~is_right][None]
  want = np.mean((above > 0) + 0.5 * (above == 0))
  np.testing.assert_allclose(scores.auc(score, is_right), want)
  np.testing.assert_allclose(scores.auc(-score, is_right), 1 - want)
  np.testing.assert_allclose(scores.auc(np.exp(score), is_right), want)
  assert scores.auc([0.1, 0.2, 0.9], [False, False, True]) == 1
  assert np.isnan(scores.auc([1.0, 2.0], [True, True]))


def test_brier():
  assert scores.brier(np.full(7, 0.5), np.arange(7) % 2) == 0.25
  assert scores.brier(np.asarray([1.0, 0.0]), np.asarray([1, 0])) == 0
  np.testing.assert_allclose(scores.brier(np.asarray([0.8, 0.3]), [1, 0]), 0.065)
