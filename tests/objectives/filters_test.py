"""Which groups are kept, and how often a problem is asked."""

import numpy as np

from r1jax.objectives import filters
from r1jax.objectives.advantages import grpo


def test_groups_with_a_right_and_a_wrong_answer_are_kept():
  correct_QG = np.asarray([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]])
  np.testing.assert_array_equal(filters.mixed(correct_QG), [0, 0, 1, 1])
  np.testing.assert_array_equal(filters.everything(correct_QG), [1, 1, 1, 1])
  assert filters.FILTERS.keys() == {"none", "mixed"}
  # What is left out has no advantage.
  assert not grpo(correct_QG[:2].astype(float)).any()


def test_groups_without_a_gold_are_kept_and_asked_as_if_unknown():
  nan_QG = np.full((1, 3), np.nan)
  np.testing.assert_array_equal(filters.mixed([*nan_QG, np.ones(3)]), [1, 0])
  rate_N = filters.running_rate([np.nan, 1.0], [0], nan_QG, decay=0.5)
  weight_N = filters.curriculum_weights(rate_N, floor=0.01)
  np.testing.assert_allclose(weight_N, [25 / 26, 1 / 26])


def test_running_rates():
  """The first share counts whole, later ones fade in; nobody else's moves."""
  rate_N = np.asarray([np.nan, 0.5, np.nan])
  got = filters.running_rate(
    rate_N, np.asarray([0, 1, 0]), np.asarray([[1, 0], [1, 1], [1, 1]]), decay=0.75
  )
  np.testing.assert_allclose(got, [0.5 + 0.25 * 0.5, 0.5 + 0.25 * 0.5, np.nan])
  assert np.isnan(rate_N[0])


def test_problems_half_solved_are_asked_most():
  rate_N = np.asarray([np.nan, 0.5, 0.0, 1.0, 0.9])
  got = filters.curriculum_weights(rate_N, floor=0.05)
  want = np.asarray([0.25, 0.25, 0.05, 0.05, 0.09])
  np.testing.assert_allclose(got, want / want.sum())
  order = np.asarray([4, 0, 3, 1, 2])
  np.testing.assert_allclose(
    filters.curriculum_weights(rate_N[order], floor=0.05), got[order]
  )
