"""Intervals against published numbers and by simulation."""

import numpy as np
import pytest

from r1jax.evals.intervals import clustered_interval, mean_interval, t95, wilson


@pytest.mark.parametrize(
  ("successes", "n", "low", "high"),
  [
    (10, 10, 0.7225, 1.0),
    (0, 10, 0.0, 0.2775),
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_against_newcombe(successes, n, low, high):
  """Newcombe (1998) table I, method 3, to the printed digits."""
  np.testing.assert_allclose(wilson(successes, n), (low, high), atol=5e-5)


def test_wilson_edges():
  assert wilson(0, 0) == (0.0, 1.0)
  assert wilson(5, 5)[1] == 1.0
  with pytest.raises(ValueError, match="6 successes of 5"):
    wilson(6, 5)


def test_one_sample_per_problem_is_wilson():
  right = [1.0] * 37 + [0.0] * 63
  np.testing.assert_allclose(clustered_interval(right), wilson(37, 100))
  np.testing.assert_allclose(clustered_interval([1.0] * 20), wilson(20, 20))
  assert clustered_interval([]) == (0.0, 1.0)


def test_effective_trials_lie_between_problems_and_samples():
  def width(accuracy, k):
    low, high = clustered_interval(accuracy, samples_per_problem=k)
    return high - low

  alike = [1.0, 0.0] * 50
  mixed = [0.75, 0.25] * 50
  same = [0.5] * 100
  assert width(alike, 16) == pytest.approx(width(alike, 1))
  assert width(same, 16) == pytest.approx(np.diff(wilson(800, 1600))[0])
  assert width(same, 16) < width(mixed, 16) < width(alike, 16)


def test_coverage_with_problems_of_unequal_difficulty():
  """95 % of such intervals hold the true mean; Wilson over all samples would not."""
  rng = np.random.default_rng(0)
  difficulty = rng.beta(0.5, 0.5, size=(2000, 60))
  accuracy = rng.binomial(8, difficulty) / 8
  inside = {"clustered": 0, "pooled": 0}
  for means in accuracy:
    for name, (low, high) in (
      ("clustered", clustered_interval(list(means), samples_per_problem=8)),
      ("pooled", wilson(8 * means.sum(), 8 * 60)),
    ):
      inside[name] += low <= 0.5 <= high
  assert 0.93 < inside["clustered"] / 2000 < 0.97
  assert inside["pooled"] / 2000 < 0.75


@pytest.mark.parametrize(
  ("df", "want"),
  [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)],
)
def test_student_against_the_printed_table(df, want):
  """Abramowitz and Stegun (1964), table 26.10, to the printed digits."""
  assert t95(df) == pytest.approx(want, abs=5e-4)


def test_interval_of_a_few_means():
  low, high = mean_interval([1.0, 2.0, 3.0])
  assert (low + high) / 2 == pytest.approx(2.0)
  assert (high - low) / 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
  assert mean_interval([0.5, 0.5]) == (0.5, 0.5)
  with pytest.raises(ValueError, match="1 values"):
    mean_interval([0.5])


def test_coverage_of_three_normal_values():
  """The 1.96 of many values would hold the mean in 81 % of cases."""
  samples = np.random.default_rng(0).normal(size=(4000, 3))
  inside = sum(low <= 0 <= high for low, high in map(mean_interval, samples.tolist()))
  assert 0.94 < inside / 4000 < 0.96
