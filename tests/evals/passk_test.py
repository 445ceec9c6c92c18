"""pass@k against worked numbers and against drawing."""

import itertools

import pytest

from r1jax.evals.passk import pass_at_k


@pytest.mark.parametrize(
  ("n", "c", "k", "want"),
  [
    (10, 3, 1, 0.3),
    (10, 3, 5, 0.916667),
    (4, 1, 2, 0.5),
    (16, 2, 8, 0.766667),
    (6, 1, 6, 1.0),
    (8, 5, 4, 1.0),
    (8, 0, 8, 0.0),
  ],
)
def test_worked_numbers(n, c, k, want):
  assert pass_at_k(n, c, k) == pytest.approx(want, abs=1e-6)


def test_equals_the_share_of_subsets_with_a_right_one():
  right = [True, False, False, True, False, False, False]
  subsets = list(itertools.combinations(right, 3))
  assert pass_at_k(7, 2, 3) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_impossible_counts(n, c, k):
  with pytest.raises(ValueError, match="samples"):
    pass_at_k(n, c, k)
