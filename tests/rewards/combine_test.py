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


def combined(weights, **how):
  """With the same weights for both groups."""
  return combine.combine(PARTS_QG, [weights] * 2, **how)


def test_weighted_sum():
  got = combined({"accuracy": 1.0, "format": 0.5, "language": 0.0})
  np.testing.assert_array_equal(got, [[1.5, 0.5, 0.0, 1.0], [0.5] * 4])
  assert got.dtype == np.float32


def test_right_well_formed_and_consistent_totals_2_9():
  """Worked number of the method notes: 1 + 1 + 0.9."""
  got = combined({"accuracy": 1.0, "format": 1.0, "language": 1.0})
  assert got[0, 0] == pytest.approx(2.9)


def test_parts_without_weight_change_nothing():
  """R23: every part may be logged, only those with a weight count."""
  got = combined({"format": 2.0})
  np.testing.assert_array_equal(got, 2.0 * PARTS_QG["format"])


def test_per_part_normalisation_evens_out_spreads():
  """R23: a part of small spread counts as much as one of large spread."""
  got = combined({"language": 1.0}, normalise="per_part")
  # a constant group has no spread, and rounding must not become one
  np.testing.assert_array_equal(got[0], [0.0] * 4)
  np.testing.assert_allclose(got[1], [-1.0, 1.0, -1.0, 1.0], rtol=1e-5)
  both = combined({"accuracy": 1.0, "format": 1.0}, normalise="per_part")
  np.testing.assert_allclose(both, [[2.0, 0.0, -2.0, 0.0], [0.0] * 4], atol=1e-6)


NAN = np.nan
# A reasoning prompt, one that a model of helpfulness judges, and one of safety.
OF_ALL = {
  "accuracy": np.array([[1, 0], [NAN, NAN], [NAN, NAN]], np.float32),
  "format": np.array([[1, 0], [1, 0], [1, 1]], np.float32),
  "language": np.array([[0.9, 0.4], [0.8, 0.5], [1, 1]], np.float32),
  "helpfulness": np.array([[NAN, NAN], [0.5, -1.5], [NAN, NAN]], np.float32),
  "safety": np.array([[NAN, NAN], [NAN, NAN], [0.75, 0.25]], np.float32),
}
BY_GROUP = [
  dict.fromkeys((part, "format", "language"), 1.0)
  for part in ("accuracy", "helpfulness", "safety")
]


def test_each_group_has_the_parts_that_it_weighs():
  """R1's last stage, R_reasoning or R_general, and R_lang: 1 + 1 + 0.9 and so on."""
  got = combine.combine(OF_ALL, BY_GROUP)
  want = [[1 + 1 + 0.9, 0.4], [0.5 + 1 + 0.8, -1.5 + 0.5], [0.75 + 2, 0.25 + 2]]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert got.dtype == np.float32


def test_a_group_may_weigh_several_models():
  parts = {name: np.ones((1, 1)) for name in ("helpfulness", "safety", "format")}
  weights = {"helpfulness": 0.5, "safety": 2.0, "format": 1.0}
  np.testing.assert_array_equal(combine.combine(parts, [weights]), [[3.5]])


def test_per_part_normalisation_is_of_what_a_group_has():
  got = combine.combine(OF_ALL, BY_GROUP, normalise="per_part")
  # Three parts that differ, and of the last group one.
  np.testing.assert_allclose(got, [[3, -3], [3, -3], [1, -1]], rtol=1e-5)


def test_a_part_with_the_weight_0_may_be_missing():
  weights = BY_GROUP[1] | {"accuracy": 0.0}
  got = combine.combine(OF_ALL, [BY_GROUP[0], weights, BY_GROUP[2]])
  np.testing.assert_array_equal(got, combine.combine(OF_ALL, BY_GROUP))


@pytest.mark.parametrize(
  ("weights", "normalise", "message"),
  [
    ({"acuracy": 1.0}, "none", r"config\.reward\.weights='acuracy'.*'accuracy'"),
    ({"format": 1.0}, "per_group", r"config\.reward\.normalise='per_group'"),
  ],
)
def test_unknown_names(weights, normalise, message):
  with pytest.raises(InputError, match=message):
    combined(weights, normalise=normalise)


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
