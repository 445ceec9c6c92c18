"""Votes against worked numbers; ties; which formulas are compared."""

import pytest

from r1jax.evals import votes
from r1jax.evals.votes import Ballot, ballot

MATHS = {"verifier": "math", "meta": {}}


def test_majority_and_best_of_six():
  """Six answers to a problem whose gold is 5 (Havrilla et al., arXiv 2403.04642)."""
  keys = ["4", "4", "5", "4", "6", "5"]
  assert keys[votes.winner(keys)] == "4"
  scores = [0.2, 0.1, 0.9, 0.3, 0.4, 0.5]
  assert keys[votes.best(scores)] == "5"


def test_a_vote_weighed_by_scores():
  """Math-Shepherd (arXiv 2312.08935): A .9, B .5 + .45, C .1."""
  keys = ["A", "B", "C", "B"]
  assert votes.winner(keys, [0.9, 0.5, 0.1, 0.45]) == 1
  assert votes.winner(keys, [0.96, 0.5, 0.1, 0.45]) == 0
  assert votes.winner(["7", "3", "7", "9"]) == 0  # DeepSeek-R1's cons@4


@pytest.mark.parametrize(
  ("keys", "want"),
  [
    (["a", "b", "b", "a"], 0),
    (["b", "a", "a", "b"], 0),
    ([None, "a", "b"], 1),
    ([None, None], None),
    ([], None),
  ],
)
def test_of_equal_votes_the_first_seen_counts(keys, want):
  assert votes.winner(keys) == want
  assert votes.winner(keys, [0.5] * len(keys)) == want


def test_of_equal_scores_the_first_is_best():
  assert votes.best([0.1, 0.7, 0.7]) == 1


def test_strengths_do_not_know_where_zero_is():
  assert votes.strengths([2.0, 1.0]) == votes.strengths([-8.0, -9.0])
  # Bradley-Terry: 2 wins over 1 with probability 1 / (1 + e^-1).
  won, lost = votes.strengths([2.0, 1.0])
  assert won / (won + lost) == pytest.approx(0.731059, abs=1e-6)


def test_for_fewer_answers_blocks_are_counted():
  right = [True, False, False, False, True]

  def first(block):
    return None if block.start == 4 else 0

  assert votes.share_right(right, 1, first) == 1 / 5
  assert votes.share_right(right, 2, first) == 1 / 2
  assert votes.share_right(right, 5, first) == 1


@pytest.mark.parametrize(
  ("verifier", "text", "want"),
  [
    ("math", r"so it is \boxed{\frac72}", "7/2"),
    ("gsm8k", "She has 18 dollars.", "18"),
    # All of a span is read: other words, another answer.
    ("reasoning_gym", "<answer>2 red  balls</answer>", "2 red balls"),
    ("reasoning_gym", "<answer> 3.50 </answer>", "7/2"),
    ("exact", "<answer>Paris</answer>", "Paris"),
    ("exact", "<answer>paris", None),
    ("code", "```python\nprint(1)\n```", None),
  ],
)
def test_what_an_answer_votes_for(verifier, text, want):
  found = ballot(text, {"verifier": verifier, "meta": {}})
  assert (found and found.key) == want


def cast(*shown):
  return [one and Ballot(one.casefold(), one) for one in shown]


def test_only_what_may_be_the_same_is_compared():
  pairs = votes.comparisons(cast("x/2", "3", None, "4", "x/2", r"\frac{x}{2}"))
  assert [(a.shown, b.shown) for a, b in pairs] == [
    ("x/2", "3"),
    ("x/2", "4"),
    ("x/2", r"\frac{x}{2}"),
    ("3", r"\frac{x}{2}"),
    ("4", r"\frac{x}{2}"),
  ]
  rare = [f"x+{i}" for i in range(40)]
  pairs = votes.comparisons(cast(*rare, *["y"] * 2))
  assert len(pairs) == votes.FORMS * (votes.FORMS - 1) // 2
  assert any("y" in (a.key, b.key) for a, b in pairs)


def test_equal_forms_are_one_vote():
  given = cast("a", "b", None, "c", "d", "b")
  assert votes.merged(given, set()) == ["a", "b", None, "c", "d", "b"]
  same = {("b", "c"), ("c", "d")}
  assert votes.merged(given, same) == ["a", "b", None, "b", "b", "b"]
  keys = votes.merged(given, same)
  assert votes.winner(keys) == 1
