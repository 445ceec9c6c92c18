"""Points for length: worked numbers, and what they may never do."""

import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.objectives import shaping


def test_soft_overlong_worked_numbers():
  """DAPO: 16,384 tokens are free, 20,480 are the limit."""
  length_QG = np.asarray([[16_384, 16_385, 18_432], [20_480, 20_481, 1]])
  got = shaping.soft_overlong(length_QG, max_tokens=20_480, buffer=4096)
  want = [[0, -0.000244, -0.5], [-1, -1, 0]]
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_that_does_not_fit_is_named(buffer):
  with pytest.raises(InputError, match=rf"overlong_buffer={buffer}.*max_tokens=100"):
    shaping.soft_overlong(np.ones((1, 1)), max_tokens=100, buffer=buffer)


def test_cosine_length_by_hand():
  """Right answers from 2 to 1 point, wrong ones from -10 to 0, none past the limit."""
  length_QG = np.asarray([[0, 50, 100, 25, 0, 50]])
  correct_QG = np.asarray([[1, 1, 1, 1, 0, 0]])
  got = shaping.cosine_length(
    correct_QG,
    length_QG,
    max_tokens=100,
    correct=(2.0, 1.0),
    wrong=(-10.0, 0.0),
    exceeded=-10.0,
  )
  quarter = 1 + 0.5 * (1 + np.sqrt(0.5))
  np.testing.assert_allclose(got, [[2, 1.5, -10, quarter, -10, -5]])


def test_the_shortest_right_answer_alone_has_a_bonus():
  correct_QG = np.asarray([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]])
  length_QG = np.asarray([[7, 5, 2, 9], [1, 2, 3, 4], [4, 1, 4, 6]])
  got = shaping.shortest_correct(correct_QG, length_QG, bonus=0.5)
  np.testing.assert_array_equal(got, [[0, 0.5, 0, 0], [0] * 4, [0.5, 0, 0.5, 0]])


def test_the_gate_leaves_nothing_to_wrong_answers():
  """R14: with it no shape makes a wrong answer better than another."""
  correct_QG = np.asarray([[1, 0, 0]])
  got = shaping.outcome_gate(correct_QG, np.asarray([[-0.3, 5.0, -5.0]]))
  np.testing.assert_array_equal(got, [[-0.3, 0, 0]])
