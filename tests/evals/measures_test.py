"""What is said of a set, against worked numbers."""

import pytest

from r1jax.evals import measures
from r1jax.evals.intervals import clustered_interval, wilson

GOLD = "5"


def problem(*keys, scores=None, gold=GOLD, verifier="math", **changes):
  """Answers to one problem, by their votes."""
  return [
    {
      "verifier": verifier,
      "vote": key,
      "right": None if gold is None else key == gold,
      "reward": {"format": 1.0}
      | ({} if gold is None else {"accuracy": float(key == gold)})
      | ({} if scores is None else {measures.MODEL: scores[i]}),
      "length": 10 * (i + 1),
      "stop": "eos",
      **changes,
    }
    for i, key in enumerate(keys)
  ]


def mean(found, name):
  return found[name]["mean"]


def test_of_six_answers():
  """Havrilla et al. (arXiv 2403.04642): maj 4 is wrong, pass@6 is 1, rerank right."""
  scores = [0.2, 0.1, 0.9, 0.3, 0.4, 0.5]
  found = measures.summary(
    [problem("4", "4", "5", "4", "6", "5", scores=scores)], pairwise=False
  )
  assert mean(found, "maj@6") == 0 and mean(found, "best@6") == 1
  assert mean(found, "weighted@6") == 1  # 5: 0.9 + 0.5, 4: 0.2 + 0.1 + 0.3
  assert mean(found, "pass@1") == pytest.approx(2 / 6)
  assert mean(found, "pass@2") == pytest.approx(1 - 6 / 15)
  assert mean(found, "pass@6") == 1
  # Blocks of two: 4 4 | 5 4 | 6 5; of equal votes the first.
  assert mean(found, "maj@2") == pytest.approx(1 / 3)
  assert [key for key in found if "pass" in key] == [
    "pass@1",
    "pass@2",
    "pass@4",
    "pass@6",
  ]


def test_of_four_answers():
  """DeepSeek-R1 (arXiv 2501.12948): pass@1 of the bits 1, 0, 0, 1 is a half; cons@4 of
  7, 3, 7, 9 is 7."""
  found = measures.summary([problem("7", "3", "7", "9", gold="7")], pairwise=False)
  assert mean(found, "pass@1") == 0.5 and mean(found, "maj@4") == 1


def test_scores_of_pairs_weigh_by_their_differences():
  keys, scores = ("5", "4", "4"), [-1.0, -2.5, -2.5]
  for shift in (0.0, 100.0):
    own = problem(*keys, scores=[score + shift for score in scores])
    # e^0 against twice e^-1.5.
    assert mean(measures.summary([own], pairwise=True), "weighted@3") == 1
  own = problem(*keys, scores=[0.3, 0.2, 0.2])
  assert mean(measures.summary([own], pairwise=False), "weighted@3") == 0


def test_intervals_are_by_problem():
  groups = [problem("5", "5"), problem("4", "4"), problem("5", "4")]
  found = measures.summary(groups, pairwise=False)
  want = clustered_interval([1, 0, 0.5], samples_per_problem=2)
  assert (found["pass@1"]["low"], found["pass@1"]["high"]) == want
  assert (found["pass@2"]["low"], found["pass@2"]["high"]) == wilson(2, 3)


def test_lengths_and_shares():
  cut = problem("5", None, stop="length")
  found = measures.summary([problem("5", "4"), cut], pairwise=False)
  assert found["length"] == {
    "mean": 15.0,
    "median": 15.0,
    "p95": 20.0,
    "right": 10.0,
    "wrong": 20.0,
  }
  assert found["truncated"] == 0.5 and found["no_answer"] == 0.25
  assert found["format"] == 1.0 and found["points"] == 0.5
  assert measures.MODEL not in found


def test_without_a_gold_answer_nothing_is_right():
  found = measures.summary([problem("5", "4", gold=None)], pairwise=False)
  assert not [key for key in found if "@" in key]
  assert "points" not in found and found["n"] == 1
  found = measures.summary(
    [problem("5", "4", gold=None), problem("5", "4")], pairwise=False
  )
  assert found["n_judged"] == 1 and mean(found, "pass@1") == 0.5


def test_programs_have_no_vote():
  found = measures.summary(
    [problem(None, None, verifier="code"), problem("5", "5")], pairwise=False
  )
  assert mean(found, "maj@2") == 1 and mean(found, "pass@2") == 0.5
  assert found["no_answer"] == 0


@pytest.mark.parametrize(
  ("samples", "want"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_ks(samples, want):
  assert measures.ks(samples) == want
