"""Tests of the weighted sum of reward parts."""

import numpy as np
import pytest

from r1jax.errors import InputError
from r1jax.rewards import combine

PARTS_QG = {
  "accuracy": np.array([[1, 0, 0, 1], [0, 0, 0, 0]], np.float32),
  "format": np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32),
  "language": np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.3, 0.1, 0.3]], np.float32),
}


def test_weighted_sum():
  got = combine.combine(PARTS_QG, {"accuracy": 1.0, "format": 0.5, "language": 0.0})
  np.testing.assert_array_equal(got, [[1.5, 0.5, 0.0, 1.0], [0.5] * 4])
  assert got.dtype == np.float32


def test_right_well_formed_and_consistent_totals_2_9():
  """Worked number of the method notes: 1 + 1 + 0.9."""
  got = combine.combine(PARTS_QG, {"accuracy": 1.0, "format": 1.0, "language": 1.0})
  assert got[0, 0] == pytest.approx(2.9)


def test_parts_without_weight_change_nothing():
  """R23: every part may be logged, only those with a weight count."""
  got = combine.combine(PARTS_QG, {"format": 2.0})
  np.testing.assert_array_equal(got, 2.0 * PARTS_QG["format"])


def test_per_part_normalisation_evens_out_spreads():
  """R23: a part of small spread counts as much as one of large spread."""
  got = combine.combine(PARTS_QG, {"language": 1.0}, normalise="per_part")
  # a constant group has no spread, and rounding must not become one
  np.testing.assert_array_equal(got[0], [0.0] * 4)
  np.testing.assert_allclose(got[1], [-1.0, 1.0, -1.0, 1.0], rtol=1e-5)
  both = combine.combine(
    PARTS_QG, {"accuracy": 1.0, "format": 1.0}, normalise="per_part"
  )
  np.testing.assert_allclose(both, [[2.0, 0.0, -2.0, 0.0], [0.0] * 4], atol=1e-6)


@pytest.mark.parametrize(
  ("weights", "normalise", "message"),
  [
    ({"acuracy": 1.0}, "none", r"config\.reward\.weights='acuracy'.*'accuracy'"),
    ({"format": 1.0}, "per_group", r"config\.reward\.normalise='per_group'"),
  ],
)
def test_unknown_names(weights, normalise, message):
  with pytest.raises(InputError, match=message):
    combine.combine(PARTS_QG, weights, normalise=normalise)


def test_choose_parts():
  parts = combine.choose_parts(["format", "language"], target_language="zh")
  text = "<think>中文</think><answer>5</answer>"
  assert {name: part(text, {}) for name, part in parts.items()} == {
    "format": 1.0,
    "language": 1.0,
  }
  with pytest.raises(InputError, match="did you mean 'format'"):
    combine.choose_parts(["formats"])
  with pytest.raises(InputError, match=r"config\.reward\.weights is empty"):
    combine.choose_parts([])
